"""`pipeline compare`: students trained from one cache, side by side, once per seed.

Each run is `train` with a few values changed (`compare.runs` in params.yaml) and takes the road of any other student:
train-student, then evaluate. Its student lies in models/comparison/<run>-<seed>, its figures in runs/comparison/<run>-<seed>,
its checkpoints where all are. So a comparison that was stopped goes on where it was, and one that is done costs only the
evaluations.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.comparison_table import TEACHER, UNTRAINED, Row, header, markdown
from stages import evaluate, init_student, train_student
from stages.cache_location import open_cache
from stages.config import CompareConfig, Config, to_plain
from stages.context import Context, Figure, Progress, Silent
from stages.errors import ConfigError
from stages.figures import PREDICTION
from stages.outputs import write_json, write_text

BEFORE = "before-training"
"""Folder of the student's initial weights among those of the runs."""


def compare(config: Config, context: Context) -> None:
    """Train and evaluate every run of `compare.runs` for every seed; write runs/comparison.json and runs/comparison.md.

    Beside them in the table: the teacher, from its cached targets, and the student of `train` before its training.
    Raises `ConfigError` where the parameters name no runs or a run contradicts them, and what the stages raise.
    """
    comparison = config.compare
    if comparison is None:
        raise ConfigError(
            "compare is missing in params.yaml; expected its seeds and runs, as in recipes/minilm/params.yaml"
        )
    _check_names(comparison)
    plans = {name: {seed: config.of_run(name, seed) for seed in comparison.seeds} for name in comparison.runs}
    # What would be refused is refused before the first run trains for an hour.
    train_student.check(config, context)
    for run_config in (run_config for seeds in plans.values() for run_config in seeds.values()):
        train_student.check(run_config, context, initial_weights=run_config.student.initialise == "teacher")
    quiet = replace(context, progress=_WithoutTables(context.progress))
    evaluation = _before_training(config, quiet)
    rows = [Row.teacher(evaluation, config.teacher.objective), Row.untrained(evaluation)]
    for number, (name, seeds) in enumerate(plans.items(), start=1):
        figures = []
        for seed, run_config in seeds.items():
            context.progress.message(f"{name}, seed {seed} (run {number} of {len(plans)})")
            figures.append(_run(run_config, quiet, f"{slug(name)}-{seed}"))
        rows.append(Row.of_runs(name, figures))
    _publish(config, context, comparison.seeds, rows, evaluation)


def _check_names(comparison: CompareConfig) -> None:
    """Refuse names of runs that are no name for a folder, share one with another run, or are taken."""
    folders: dict[str, str] = {}
    for name in comparison.runs:
        if not slug(name) or name in (TEACHER, UNTRAINED) or slug(name) == BEFORE:
            raise ConfigError(
                f"compare.runs has {name!r}; allowed: names with Latin letters or digits, which give the folder, other than "
                f"{TEACHER!r}, {UNTRAINED!r} and {BEFORE!r}"
            )
        if folders.setdefault(slug(name), name) != name:
            raise ConfigError(
                f"compare.runs has {folders[slug(name)]!r} and {name!r}, whose folders would both be called {slug(name)!r}; rename one"
            )


def _before_training(config: Config, context: Context) -> dict[str, Any]:
    """Figures of the initial weights of `train.student`."""
    artefacts = context.artefacts.of_run(BEFORE)
    shutil.rmtree(artefacts.student, ignore_errors=True)
    shutil.copytree(context.artefacts.student_init(config.train.student), artefacts.student)
    evaluate.run(config, replace(context, artefacts=artefacts))
    return _read(artefacts.runs / "evaluation.json")


def _run(config: Config, context: Context, name: str) -> dict[str, Any]:
    """Train and evaluate one student; its figures."""
    artefacts = context.artefacts.of_run(name)
    context = replace(context, artefacts=artefacts)
    if config.student.initialise == "random":  # of this seed; it needs nothing of the teacher but the cache
        init_student.write_initial_weights(config, context, config.train.student)
    train_student.run(config, context)
    evaluate.run(config, context)
    return {**_read(artefacts.runs / "train.json"), **_read(artefacts.runs / "evaluation.json")}


def _publish(
    config: Config, context: Context, seeds: Sequence[int], rows: Sequence[Row], evaluation: Mapping[str, Any]
) -> None:
    split, objective = config.evaluate.split, config.teacher.objective
    tokens = PREDICTION[objective][2]
    content = {
        "split": split,
        tokens: evaluation[tokens],
        "seeds": list(seeds),
        "cache_root_digest": open_cache(config, context).root_digest,
        # What the runs differ from: the report says so where its own student was trained otherwise.
        "train": to_plain(config.train),
        "student": to_plain(config.student),
        "rows": [row.to_json() for row in rows],
    }
    title = f"{split} split, {evaluation[tokens]:,} {tokens.replace('_', ' ')}; seeds {', '.join(map(str, seeds))}"
    write_json(context.artefacts.comparison, content)
    write_text(context.artefacts.comparison.with_suffix(".md"), markdown(title, rows, objective))
    context.progress.table(title, header(objective), [row.cells(objective) for row in rows])


def slug(name: str) -> str:
    """A run's name as a folder's: `top-k and the rest` gives `top-k-and-the-rest`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class _WithoutTables(Silent):
    """Passes on what the stages of a run do, and leaves out their summaries: the comparison has one table for all."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        self._progress.begin(task, total, unit, done)

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        self._progress.advance(amount, **figures)

    def message(self, text: str) -> None:
        self._progress.message(text)
