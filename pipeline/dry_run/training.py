"""How far a training has come."""

from __future__ import annotations

from dataclasses import replace

from pipeline.dry_run.cache import cache_input
from pipeline.dry_run.files import CANNOT_BEGIN, inputs, recorded, show, wanted_of
from stages.config import Config, to_plain
from stages.context import Context, Figure
from stages.errors import ConfigError, StageError
from storage.errors import CacheError

STEPS_THERE, NEWEST = "steps there", "newest checkpoint"
"""Rows that a comparison shows of each of its runs."""


def train_student(config: Config, context: Context) -> None:
    """How far the very training that `pipeline train-student` would do has come."""
    artefacts, name = context.artefacts, config.train.student
    of_student = {"students": {name: to_plain(config.student)}}
    rows = inputs(context, {artefacts.student_init(name): of_student})
    if artefacts.root is not None:
        rows["reads"] = "the cache at the root, which is not looked at here; so how far a training is remains open"
    else:
        rows.update(cache_input(config, artefacts))
        rows.update(training_rows(config, context))
    show(context, "train-student", rows, {artefacts.student: {**wanted_of(config, "train"), **of_student}})


def training_rows(config: Config, context: Context) -> dict[str, Figure]:
    """Steps and checkpoints of exactly this training; its identity needs the cache and the initial weights."""
    from stages.device import resolve_device
    from stages.training.caches import further_caches
    from stages.training.checkpoints import checkpoint_step
    from stages.training.run import plan_run
    from storage import CacheReader

    artefacts = context.artefacts
    if not artefacts.cache.is_dir() or not artefacts.student_init(config.train.student).is_dir():
        steps = config.train.steps
        return {STEPS_THERE: f"0 of {steps:,}"} if steps else {"epochs": config.train.epochs or 0}
    try:
        context = replace(context, device=resolve_device(config.machine.device, 0, 1))
        reader = CacheReader(artefacts.cache)
        run = plan_run(config, context, reader, further_caches(config, context, reader))
    except ConfigError:
        raise
    except (StageError, CacheError) as error:
        return {CANNOT_BEGIN: str(error)}
    folder = artefacts.checkpoints / run.fingerprint[:16]
    there = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    newest = max(map(checkpoint_step, there), default=0)
    published = recorded(artefacts.runs / "provenance.json").get("run_fingerprint") == run.fingerprint
    return {
        "run": run.fingerprint[:12],
        STEPS_THERE: f"{newest:,} of {run.steps:,}",
        "steps missing": run.steps - newest,
        NEWEST: artefacts.shown(folder / f"checkpoint-{newest}") if newest else "none",
        "sequences a step": config.train.batch_size,
        "precision": run.precision,
        "models/student is of this run": published,
    }
