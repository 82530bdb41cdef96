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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from stages import evaluate, init_student, train_student
from stages.config import Config
from stages.context import Context, Figure, Progress, Silent
from stages.errors import ConfigError
from stages.held_out import LABELS
from stages.models import require_model
from stages.outputs import write_json, write_text

_OF_THE_TEACHER = {"kl_masked": 0.0, "kl_all": 0.0, "agreement_masked": 1.0, "agreement_all": 1.0, "hidden_cosine": 1.0}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the figures of a model, one value per seed."""

    name: str
    trained: bool
    values: Mapping[str, Sequence[float]]
    seconds: Sequence[float] = ()

    def cells(self) -> list[str]:
        """Name, and each figure as its mean and half its range over the seeds."""
        return [self.name, *(_cell(self.values.get(figure, ())) for figure in LABELS)]

    def to_json(self) -> dict[str, Any]:
        """As it stands in runs/comparison.json."""
        values = {name: list(found) for name, found in self.values.items()}
        return {"name": self.name, "trained": self.trained, "values": values, "seconds": list(self.seconds)}


def compare(config: Config, context: Context) -> None:
    """Train and evaluate every run of `compare.runs` for every seed; write runs/comparison.json and runs/comparison.md.

    Beside them in the table: the teacher, from its cached targets, and the student of `train` before its training.
    Raises `ConfigError` where the parameters name no runs or a run contradicts them, and what the stages raise.
    """
    plans = _plans(config)
    quiet = replace(context, progress=_WithoutTables(context.progress))
    before = _before_training(config, quiet)
    rows = [_teacher(before), Row(name="student before training", trained=False, values=_figures([before]))]
    for name, configs in plans.items():
        runs = []
        for seed, run_config in configs.items():
            context.progress.message(f"run {name!r}, seed {seed} ({len(rows) - 1} of {len(plans)})")
            runs.append(_run(run_config, quiet, f"{slug(name)}-{seed}"))
        rows.append(Row(name=name, trained=True, values=_figures(runs), seconds=[run["seconds"] for run in runs]))
    _write(config, context, rows, before)


def _plans(config: Config) -> dict[str, dict[int, Config]]:
    """Per run and seed its parameters, all checked before the first one trains for an hour."""
    if config.compare is None:
        raise ConfigError("compare is missing in params.yaml; expected its seeds and runs, as in recipes/minilm.yaml")
    names: dict[str, str] = {}
    for name in config.compare.runs:
        if names.setdefault(slug(name), name) != name:
            raise ConfigError(
                f"compare.runs has {names[slug(name)]!r} and {name!r}, whose folders would both be called {slug(name)!r}; rename one"
            )
    return {name: {seed: config.of_run(name, seed) for seed in config.compare.seeds} for name in config.compare.runs}


def _before_training(config: Config, context: Context) -> dict[str, Any]:
    """Figures of the initial weights of `train.student`."""
    name = config.train.student
    initial = context.artefacts.student_init(name)
    require_model(initial, f"the initial weights of student {name!r}", f"pipeline init-student {name}")
    artefacts = context.artefacts.of_run("before-training")
    shutil.rmtree(artefacts.student, ignore_errors=True)
    shutil.copytree(initial, artefacts.student)
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


def _write(config: Config, context: Context, rows: Sequence[Row], before: Mapping[str, Any]) -> None:
    comparison = context.artefacts.comparison
    run_names = [f"{slug(row.name)}-{seed}" for row in rows if row.trained for seed in _seeds(config)]
    first = _read(context.artefacts.of_run(run_names[0]).runs / "train.json")
    content = {
        "split": config.evaluate.split,
        "masked_tokens": before["masked_tokens"],
        "seeds": _seeds(config),
        "student": config.train.student,
        "steps": first["steps"],
        "cache_root_digest": first["cache_root_digest"],
        "commit": context.commit,
        "rows": [row.to_json() for row in rows],
    }
    write_json(comparison, content)
    write_text(comparison.with_suffix(".md"), markdown(rows))
    title = f"{config.evaluate.split} split, {before['masked_tokens']:,} masked tokens, seeds {', '.join(map(str, _seeds(config)))}"
    context.progress.table(title, ["", *LABELS.values()], [row.cells() for row in rows])


def markdown(rows: Iterable[Row]) -> str:
    """The table in Markdown."""
    header = ["", *LABELS.values()]
    lines = [header, ["---", *["---:"] * len(LABELS)], *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def slug(name: str) -> str:
    """A run's name as a folder's: `top-k and the rest` gives `top-k-and-the-rest`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _seeds(config: Config) -> list[int]:
    return list(config.compare.seeds) if config.compare else []


def _teacher(evaluation: Mapping[str, Any]) -> Row:
    """The teacher compared with itself; its cached targets say what its loss is."""
    measured = {name: evaluation[f"teacher_{name}"] for name in ("mlm_loss", "masked_accuracy")}
    return Row(name="teacher", trained=False, values={name: [x] for name, x in {**_OF_THE_TEACHER, **measured}.items()})


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Each figure that all runs have (no cosine between hidden states of different width), one value per run."""
    return {name: [run[name] for run in runs] for name in LABELS if all(name in run for run in runs)}


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half_range = (max(values) - min(values)) / 2
    return f"{mean(values):.3f}" + (f" ± {half_range:.3f}" if len(values) > 1 else "")


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
