"""The command `pipeline compare`, in its four forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.completion import declared
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
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="With RUN: also write the figures there as JSON; -: to stdout, and nothing else.",
)
@click.option(
    "--markdown",
    "markdown_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With RUN: also write the tables there.",
)
@stage_command(takes_root=True, own_json=True)
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
    if bool(runs) + (name is not None) + gather > 1:
        raise click.UsageError("RUN, --only and --gather exclude each other: give one of them")
    if not runs and (json_file is not None or markdown_file is not None):
        raise click.UsageError("--json and --markdown are for RUN: without, runs/comparison.json and .md are written")
    from pipeline import compare as comparison

    if runs:
        from pipeline.comparison import side_by_side

        folders = comparison.folders_of(config)
        side_by_side.show(context, runs, folders=folders, json_file=json_file, markdown_file=markdown_file)
    elif name is not None:
        comparison.only(config, context, name)
    elif gather:
        comparison.gather(config, context)
    else:
        comparison.compare(config, context)
