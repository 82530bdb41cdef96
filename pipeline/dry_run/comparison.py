"""Which runs of a comparison are there, and how far the others have come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from pipeline.compare import BEFORE, gathered, gathered_before_training, plans_of, require_run, run_folder
from pipeline.compare_command import refuse_several
from pipeline.comparison.finished import Finished
from pipeline.dry_run.cache import cache_input
from pipeline.dry_run.files import CANNOT_BEGIN, MISSING, SAME, inputs, state
from pipeline.dry_run.training import NEWEST, STEPS_THERE, training_rows
from stages.config import Config, to_plain
from stages.context import Context, Figure
from stages.errors import InputError

NOT_KNOWN = "-"


def compare(
    config: Config,
    context: Context,
    *,
    runs: tuple[str, ...],
    name: str | None,
    gather: bool,
    markdown_file: Path | None,  # noqa: ARG001  of RUN alone
) -> None:
    """Of each run and seed that `pipeline compare` would do or gather: whether its figures are there, and the steps of its training."""
    refuse_several(runs, name, gather)
    if runs:
        raise click.UsageError("RUN is only looked at, nothing is trained: leave --dry-run out")
    plans = plans_of(config)
    if name is not None:
        require_run(name, plans)
    artefacts, student = context.artefacts, config.train.student
    read = inputs(context, {artefacts.student_init(student): {"students": {student: to_plain(config.student)}}})
    if artefacts.root is not None:
        read["reads"] = "the cache at the root, which is not looked at here; so how far trainings are remains open"
    elif not gather:
        read.update(cache_input(config, artefacts))
    of_trainings = () if gather or artefacts.root is not None else (STEPS_THERE, NEWEST)
    rows: list[list[Figure]] = []
    if name in (None, BEFORE):
        rows.append([BEFORE, NOT_KNOWN, _initial(config, context), *(NOT_KNOWN for _ in of_trainings)])
    for run, seeds in plans.items() if name is None else [(name, plans.get(name, {}))]:
        for seed, of_run in seeds.items():
            training = _training(of_run, context, run, seed) if of_trainings else {}
            found = (training.get(key, NOT_KNOWN) for key in of_trainings)
            rows.append([run, seed, _figures(of_run, context, run, seed), *found])
    read["figures there"] = f"{sum(row[2] == SAME for row in rows)} of {len(rows)}"
    if name is None:
        read[f"writes {artefacts.shown(artefacts.comparison)}"] = state(artefacts.comparison, None)
    context.progress.summary("dry run of compare", read)
    context.progress.table("its runs", ["", "seed", "figures", *of_trainings], rows)


def _figures(config: Config, context: Context, run: str, seed: int) -> str:
    """Of the trained and evaluated student."""
    found = Finished(folder=context.artefacts.of_run(run_folder(run, seed)).runs)
    if not (found.training and found.evaluation):
        return MISSING
    try:
        gathered(config, context, run, seed)
    except InputError:
        return "of other parameters"
    return SAME


def _initial(config: Config, context: Context) -> str:
    """Of the student before its training."""
    if not Finished(folder=context.artefacts.of_run(BEFORE).runs).evaluation:
        return MISSING
    try:
        gathered_before_training(config, context)
    except InputError:
        return "of another split or student"
    return SAME


def _training(config: Config, context: Context, run: str, seed: int) -> dict[str, Figure]:
    """How far it is; why it cannot begin is said beside the table."""
    rows = training_rows(config, replace(context, artefacts=context.artefacts.of_run(run_folder(run, seed))))
    if CANNOT_BEGIN in rows:
        context.progress.message(f"{run}, seed {seed} cannot begin: {rows[CANNOT_BEGIN]}")
        return {STEPS_THERE: CANNOT_BEGIN}
    return rows
