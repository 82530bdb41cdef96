"""`pipeline cache push` and `pull`: a cache to a remote root and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from pipeline.stage_command import stage_command

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context
    from storage.remote import RemoteFolder, Transferred


@click.command()
@click.argument("url")
@click.option("--verify", is_flag=True, help="Read back what is there already, and replace what is damaged.")
@stage_command(tensors=False)
def push(config: Config, context: Context, url: str, verify: bool) -> None:  # noqa: ARG001  of every command
    """Copy cache/current to a remote root.

    URL is any that fsspec knows: s3://bucket/caches, gs://..., file:///.... The cache comes to lie in
    URL/FINGERPRINT/, verified first, manifest.json last. Killed at any moment, the same command goes on. Credentials are
    those of fsspec and the store's library.
    """
    from storage.remote import RemoteFolder, push
    from storage.remote.push import AGAIN

    artefacts = context.artefacts
    root = RemoteFolder(url, again=AGAIN)
    done = push(
        artefacts.cache,
        root,
        artefacts.cache_work,
        verify=verify,
        begun=lambda task, size: context.progress.begin(task, size, "bytes"),
        advanced=_counting(context, "what was copied is kept there"),
    )
    _summary("pushed cache", done, context, root.below(done.fingerprint).shown())


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
@stage_command(tensors=False)
def pull(config: Config, context: Context, url: str, fingerprint: str | None, splits: tuple[str, ...]) -> None:
    """Fetch a cache from a remote root into cache/current.

    Which one is --fingerprint; without it the one of cache/manifest.json where that is there, else the one that was made with
    the parameters in params.yaml. Every file is verified before it counts; what is here already is not fetched
    again. Killed at any moment, the same command goes on.
    """
    from storage.remote import RemoteFolder, pull, resolve
    from storage.remote.pull import AGAIN

    artefacts = context.artefacts
    root = RemoteFolder(url, again=AGAIN)
    root_digest = None
    if fingerprint is None:
        fingerprint, root_digest = _tracked(context) or (_choose(root, config, context), None)
    fingerprint = resolve(root, fingerprint)

    done = pull(
        root,
        fingerprint,
        artefacts.cache,
        artefacts.cache_work,
        splits=splits,  # type: ignore[arg-type]  # click has checked the names
        root_digest=root_digest,
        begun=lambda task, size: context.progress.begin(task, size, "bytes"),
        advanced=_counting(context, f"what was fetched is kept in {artefacts.cache_work}"),
    )
    _summary("pulled cache", done, context, str(artefacts.cache))


def _counting(context: Context, kept: str) -> Callable[[int], None]:
    """Counts bytes, and ends the transfer when a stop was asked for; `kept` says what is safe."""

    def advance(amount: int) -> None:
        context.progress.advance(amount)
        context.stop_if_asked(kept)

    return advance


def _tracked(context: Context) -> tuple[str, str] | None:
    """Fingerprint and root digest that cache/manifest.json says, where DVC tracks that file instead of the cache."""
    from stages.errors import InputError
    from storage.errors import CacheError
    from storage.manifest import RootManifest

    file = context.artefacts.cache.parent / "manifest.json"
    try:
        manifest = RootManifest.from_bytes(file.read_bytes())
    except FileNotFoundError:
        return None
    except (CacheError, OSError) as error:
        raise InputError(
            f"{file}: {error}; fetch it again (`dvc checkout`), or name a cache with --fingerprint"
        ) from error
    return manifest.fingerprint, manifest.root_digest


def _choose(root: RemoteFolder, config: Config, context: Context) -> str:
    """The one cache at the root that was made with these parameters, or the only one there is.

    Digests of content need corpus and teacher, which are not here, so several caches may fit: then the user chooses.
    """
    from stages.config import cache_spec
    from stages.errors import InputError
    from storage import CacheDescription, differing_fields
    from storage.remote import finished_caches

    found = finished_caches(root)
    readable = {name: cache for name, cache in found.items() if isinstance(cache, CacheDescription)}
    spec = cache_spec(config)
    fitting = [name for name, cache in readable.items() if not differing_fields(spec, cache.spec)]
    if len(fitting) == 1:
        return fitting[0]
    if len(found) == 1 and readable:
        (name,) = readable
        differences = differing_fields(spec, readable[name].spec)
        context.progress.message(f"the only cache there was made with other parameters: {'; '.join(differences)}")
        return name
    if not found:
        raise InputError(f"{root.shown()} holds no finished cache; put one there with `pipeline cache push`")
    which = "several were made with these parameters" if fitting else "none of them was made with these parameters"
    raise InputError(
        f"{root.shown()} holds {len(found)} caches, and {which}; name one with --fingerprint: {', '.join(fitting or found)}"
    )


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
