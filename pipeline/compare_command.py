"""The command `pipeline compare`, in its four forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.completion import declared
from pipeline.option_values import STDOUT
from pipeline.stage_command import stage_command

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option(
    "--only",
    "name",
    metavar="NAME",
    shell_complete=declared("compare.runs"),
    help="Train and evaluate this run of compare.runs alone (before-training: evaluate the initial weights), and show no table.",
)
@click.option("--gather", is_flag=True, help="Train nothing: make the table of runs that are all there.")
@click.option(
    "--markdown",
    "markdown_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With RUN: also write the tables there.",
)
@stage_command(takes_root=True, takes_dry_run=True, own_json=True)
def compare(
    config: Config,
    context: Context,
    runs: tuple[str, ...],
    name: str | None,
    gather: bool,
    json_file: str | None,
    markdown_file: Path | None,
) -> None:
    """Train students side by side from one cache, or show runs that are there.

    Each run of compare.runs for each seed: train-student with some values changed, then evaluate. Writes
    runs/comparison.json and runs/comparison.md. Stopped at any moment, it goes on where it was. Parameters: compare, and
    those of train-student and evaluate.

    With RUN nothing is trained: held-out figures, scores, size, speed, times, caches and differing parameters of these runs, side by
    side. RUN is a run of compare.runs, student, teacher, or the folder of another project or of its runs (docs/ablation.md).
    """
    refuse_several(runs, name, gather)
    if not runs and markdown_file is not None:
        raise click.UsageError("--markdown is for RUN: without, runs/comparison.md is written")
    from pipeline import compare as comparison
    from pipeline.json_results import write_json_file

    if runs:
        from pipeline.comparison import side_by_side

        folders = comparison.folders_of(config)
        side_by_side.show(context, runs, folders=folders, json_file=json_file, markdown_file=markdown_file)
        return
    if json_file == STDOUT:
        context = comparison.without_tables(context)
    if name is not None:
        found = comparison.only(config, context, name)
    elif gather:
        found = comparison.gather(config, context)
    else:
        found = comparison.compare(config, context)
    write_json_file(found, json_file, context.progress, "the figures are")


def refuse_several(runs: tuple[str, ...], name: str | None, gather: bool) -> None:
    """Raise `click.UsageError` where more than one form is asked for."""
    if bool(runs) + (name is not None) + gather > 1:
        raise click.UsageError("RUN, --only and --gather exclude each other: give one of them")
