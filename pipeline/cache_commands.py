"""`pipeline cache ...`: look at a cache, verify it, make it whole again, copy it. Imports nothing heavy until a command runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cache_transfer import pull, push
from pipeline.stage_command import JSON, OPTIONS, TASK, TEACHER, refuse_both, stage_command

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context


@click.group()
def cache() -> None:
    """Look at a cache, verify it, make it whole again.

    info and verify need nothing but the cache; repair needs the teacher and the tokens that it was made from. push and pull
    copy a cache to a remote root and back.
    """


def _on_a_folder(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that needs a cache and no parameters."""
    project, _, _, debug = OPTIONS  # the other two are about params.yaml
    folder = click.argument(
        "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="[CACHE]"
    )
    for decorate in (debug, JSON, TASK, TEACHER, project, folder):
        command = decorate(command)
    return command


@cache.command()
@_on_a_folder
def info(folder: Path | None, project: Path, teacher: str | None, task: str | None, as_json: bool, debug: bool) -> None:
    """Say what a cache holds.

    CACHE is its folder; without it cache/current of the project, or with --teacher that of a further teacher, with --task that of a
    downstream task. Parameters,
    shards, tokens, positions, bytes per position by array, how much the cached ids hold and how sure the teacher was. Only
    manifests are read.
    """
    from pipeline import cache_info

    refuse_both(teacher, task)
    for option, name in (("--teacher", teacher), ("--task", task)):
        if folder is not None and name is not None:
            raise click.UsageError(f"CACHE and {option} both say which cache: give one")

    _run(
        project,
        teacher,
        task,
        debug=debug,
        body=lambda context: cache_info.show(folder or context.artefacts.cache, context, as_json),
    )


@cache.command()
@_on_a_folder
@click.option("--deep", is_flag=True, help="Also decode every shard: checksums of all chunks, ranges, alignment.")
@click.option(
    "--against-teacher",
    "sequences",
    type=click.IntRange(min=1),
    metavar="N",
    help="Also run N sequences of the cache through its teacher and compare.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where the teacher runs: auto (by machine.device_map, where params.yaml sets it), cpu, cuda, cuda:1.",
)
def verify(
    folder: Path | None,
    project: Path,
    teacher: str | None,
    task: str | None,
    as_json: bool,
    debug: bool,
    deep: bool,
    sequences: int | None,
    device: str,
) -> None:
    """Find out whether a cache is whole.

    CACHE is its folder; without it cache/current of the project, or with --teacher that of a further teacher, with --task that of a
    downstream task. Everything that
    is wrong is listed, with its file and shard. Exit code 0 only for a good cache.
    """
    from pipeline import cache_verify

    refuse_both(teacher, task)
    if folder is not None and task is not None:
        raise click.UsageError("CACHE and --task both say which cache: give one")
    if folder is not None and teacher is not None and sequences is None:
        raise click.UsageError(
            "CACHE and --teacher both say which cache: give one, or add --against-teacher N for that teacher on that cache"
        )

    def body(context: Context) -> None:
        cache_verify.verify(
            folder or context.artefacts.cache, context, deep=deep, sequences=sequences, device=device, as_json=as_json
        )

    _run(project, teacher, task, debug=debug, body=body)


@cache.command()
@click.option(
    "--inexact",
    is_flag=True,
    help="Repair although device or versions differ from those of the cache: equal up to rounding, another root digest.",
)
@stage_command(takes_teacher=True, takes_task=True)
def repair(config: Config, context: Context, inexact: bool) -> None:
    """Make a damaged cache whole again, bit for bit.

    Finds what is bad or missing in cache/current and computes exactly that once more from models/teacher and data/tokens. The
    root digest is that of before, and the command says so. No file is changed in place, and no good shard is touched. Killed
    at any moment, the same command goes on.
    """
    from pipeline import cache_repair

    cache_repair.repair(config, context, inexact=inexact)


cache.add_command(push)
cache.add_command(pull)


def _run(project: Path, teacher: str | None, task: str | None, *, debug: bool, body: Callable[[Context], None]) -> None:
    """What `execute` does, without params.yaml; the cache that is meant is that of the further `teacher`, or of the `task`."""
    from pipeline.environment import available_cores, quiet_libraries
    from pipeline.failures import reported
    from pipeline.further_teacher import require_known, require_known_task, speaking_of
    from pipeline.progress import make_reporter
    from pipeline.stop import StopRequest
    from stages.context import Artefacts, Context

    with StopRequest() as stop, reported(stop, debug=debug):
        quiet_libraries(debug=debug)
        if teacher is not None:
            require_known(project, teacher)
        if task is not None:
            require_known_task(project, task)
        artefacts = Artefacts(project=project, further_teacher=teacher, task=task)
        with make_reporter(f"cache {click.get_current_context().info_name}") as progress, speaking_of(artefacts):
            body(
                Context(
                    artefacts=artefacts,
                    threads=available_cores(),
                    should_stop=stop.requested,
                    progress=progress,
                )
            )
