"""What all stage commands share: options in, configuration and context built, failures turned into exit codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from pipeline.completion import declared, parameter_keys
from pipeline.option_values import prints_json

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context

P = ParamSpec("P")
Body = Callable[Concatenate["Config", "Context", P], None]

OPTIONS = (
    click.option(
        "--project",
        default=".",
        show_default=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder that holds params.yaml and all artefacts.",
    ),
    click.option(
        "--params",
        "params_file",
        default="params.yaml",
        show_default=True,
        type=click.Path(path_type=Path),
        help="Parameters, relative to the project folder.",
    ),
    click.option(
        "-S",
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=parameter_keys,
        help="Override one parameter, e.g. -S train.steps=50. The value is YAML. Repeatable.",
    ),
    click.option("--debug", is_flag=True, help="Show tracebacks and the warnings of libraries."),
)

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout and nothing else.")

JSON_FILE = click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Also write the figures there as JSON; -: to stdout, and nothing else.",
)

DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Say what is there and what would be done; do nothing and write nothing."
)

ROOT = click.option(
    "--root",
    metavar="URL",
    envvar="TEACHER_CACHE_ROOT",
    show_envvar=True,
    help="The cache is at URL/FINGERPRINT (s3://bucket/caches, file:///...), not in cache/current.",
)

TEACHER = click.option(
    "--teacher",
    metavar="NAME",
    shell_complete=declared("teachers"),
    help="The cache of this further teacher, one of teachers in params.yaml, in cache/teachers/NAME.",
)

TASK = click.option(
    "--task",
    metavar="NAME",
    shell_complete=declared("finetune.tasks"),
    help="The cache of this downstream task, one of finetune.tasks in params.yaml, in cache/tasks/NAME.",
)

WORKERS = (
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Share the work among N processes on this machine, one per GPU where there are any. Default: machine.workers.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Share the work among the workers of the Dask scheduler there, e.g. tcp://node1:8786 (docs/clusters.md).",
    ),
)


def stage_command(
    *,
    tensors: bool = True,
    torchrun: bool = False,
    takes_root: bool = False,
    takes_workers: bool = False,
    takes_teacher: bool = False,
    takes_task: bool = False,
    takes_dry_run: bool = False,
    own_json: bool = False,
    logged: bool = True,
) -> Callable[[Body[P]], Callable[..., None]]:
    """Turn `body(config, context, ...)` into the callback of a click command with the options of every stage.

    `tensors=False` is for a stage that computes none: it spares the seconds that importing torch takes. `torchrun=True`
    is for one that shares its work among the processes of a torchrun launch; the others refuse to be started twice.
    `takes_root=True` is for one that reads or writes the cache where it may lie at a remote root, `takes_workers=True` for one
    that can have its work done by other processes, `takes_teacher=True` for one whose cache may be that of a further teacher: it
    sees that teacher in the place of the main one. `takes_task=True`: it may be that of a downstream task.
    `takes_dry_run=True` is for one that `pipeline.dry_run` knows; `own_json=True` for one that is given a
    `json_file` and writes a form of its own there, `logged=False` for one that writes nothing into the project.
    """

    def decorate(body: Body[P]) -> Callable[..., None]:
        @functools.wraps(body)
        def callback(
            project: Path,
            params_file: Path,
            overrides: tuple[str, ...],
            debug: bool,
            root: str | None = None,
            workers: int | None = None,
            scheduler: str | None = None,
            as_json: bool = False,
            dry_run: bool = False,
            **arguments: Any,
        ) -> None:
            from pipeline.execute import execute

            if workers is not None and scheduler is not None:
                raise click.UsageError(
                    "--workers starts processes here and --scheduler uses those of a cluster: give one"
                )

            name = arguments.pop("teacher") if takes_teacher else None
            task = arguments.pop("task") if takes_task else None
            refuse_both(name, task)
            command = click.get_current_context().info_name or ""
            meant: Callable[..., None] = body
            if dry_run:
                from pipeline.dry_run import preview_of

                meant = preview_of(command)
                if own_json:
                    as_json = prints_json(arguments.pop("json_file"))
            chosen = meant if name is None else of_teacher(meant, name)
            execute(
                functools.partial(chosen if task is None else of_task(meant, task), **arguments),
                name=command,
                project=project,
                params_file=project / params_file,
                overrides=overrides,
                root=root,
                tensors=tensors and not dry_run,
                torchrun=torchrun,
                debug=debug,
                takes_workers=takes_workers and not dry_run,
                workers=None if dry_run else workers,
                scheduler=None if dry_run else scheduler,
                as_json=as_json,
                logged=logged and not dry_run,
            )

        options = (
            *OPTIONS,
            JSON_FILE if own_json else JSON,
            *((DRY_RUN,) if takes_dry_run else ()),
            *((ROOT,) if takes_root else ()),
            *(WORKERS if takes_workers else ()),
            *((TEACHER,) if takes_teacher else ()),
            *((TASK,) if takes_task else ()),
        )
        for option in reversed(options):
            callback = option(callback)
        return callback

    return decorate


def of_teacher(body: Body[P], name: str) -> Body[P]:
    """The same with the further teacher `name` in the place of the main one, in errors too."""

    def of_further(config: Config, context: Context, /, *arguments: P.args, **named: P.kwargs) -> None:
        from pipeline.further_teacher import speaking_of

        further, there = config.of_teacher(name), context.of_teacher(name)
        with speaking_of(there.artefacts):
            body(further, there, *arguments, **named)

    return of_further


def of_task(body: Body[P], name: str) -> Body[P]:
    """The same on the cache of the task `name`, in errors too."""

    def of_that_task(config: Config, context: Context, /, *arguments: P.args, **named: P.kwargs) -> None:
        from pipeline.further_teacher import speaking_of
        from stages.config.task_cache import finetuning

        finetuning(config).kind_of(name)  # refused where there is no such task
        there = context.of_task(name)
        with speaking_of(there.artefacts):
            body(config, there, *arguments, **named)

    return of_that_task


def refuse_both(teacher: str | None, task: str | None) -> None:
    """Raise `click.UsageError` where two caches are named."""
    if teacher is not None and task is not None:
        raise click.UsageError("--teacher and --task both say which cache: give one")
