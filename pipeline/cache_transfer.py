"""`pipeline cache push` and `pull`: a cache to a remote root and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.stage_command import stage_command

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context
    from storage.remote import Transferred


@click.command()
@click.argument("url")
@click.option("--verify", is_flag=True, help="Read back what is there already, and replace what is damaged.")
@stage_command(tensors=False, takes_teacher=True, takes_task=True)
def push(config: Config, context: Context, url: str, verify: bool) -> None:  # noqa: ARG001  of every command
    """Copy cache/current to a remote root.

    URL is any that fsspec knows: s3://bucket/caches, gs://..., file:///.... The cache comes to lie in
    URL/FINGERPRINT/, verified first, manifest.json last. Killed at any moment, the same command goes on. Credentials are
    those of fsspec and the store's library.
    """
    from stages.cache_location import push_cache
    from storage.remote import RemoteFolder

    done = push_cache(context, url, verify=verify)
    _summary("pushed cache", done, context, RemoteFolder(url).below(done.fingerprint).shown())


@click.command()
@click.argument("url")
@click.option("--fingerprint", metavar="F", help="Which cache, by the beginning of its fingerprint.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=click.Choice(["train", "validation", "test"]),
    help="Fetch only this split. Repeatable.",
)
@stage_command(tensors=False, takes_teacher=True, takes_task=True)
def pull(config: Config, context: Context, url: str, fingerprint: str | None, splits: tuple[str, ...]) -> None:
    """Fetch a cache from a remote root into cache/current.

    Which one is --fingerprint; without it the one of cache/manifest.json where that is there, else the one that was made with
    the parameters in params.yaml. Every file is verified before it counts; what is here already is not fetched
    again. Killed at any moment, the same command goes on.
    """
    from stages.cache_location import choose, counting, tracked
    from storage.remote import RemoteFolder, pull, resolve
    from storage.remote.pull import AGAIN

    artefacts = context.artefacts
    root = RemoteFolder(url, again=AGAIN)
    root_digest = None
    if fingerprint is None:
        meant = tracked(artefacts)
        fingerprint = choose(root, config, context) if meant is None else meant.fingerprint
        root_digest = None if meant is None else meant.root_digest
    fingerprint = resolve(root, fingerprint)

    done = pull(
        root,
        fingerprint,
        artefacts.cache,
        artefacts.cache_work,
        splits=splits,  # type: ignore[arg-type]  # click has checked the names
        root_digest=root_digest,
        begun=lambda task, size: context.progress.begin(task, size, "bytes"),
        advanced=counting(context, f"what was fetched is kept in {artefacts.cache_work}"),
    )
    _summary("pulled cache", done, context, str(artefacts.cache))


def _summary(title: str, done: Transferred, context: Context, place: str) -> None:
    context.progress.summary(
        title,
        {
            "fingerprint": done.fingerprint[:12],
            "root digest": done.root_digest[:12],
            "files": done.files,
            "megabytes": round(done.bytes / 1e6, 1),
            "megabytes moved": round(done.moved / 1e6, 1),
            "place": place,
        },
    )
