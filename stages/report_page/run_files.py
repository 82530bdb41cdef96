"""The files of a finished run, read and checked: what the report page is made of."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.config import Config, load_config
from stages.context import Artefacts
from stages.errors import ConfigError, InputError
from stages.figures import Objective, closest

T = TypeVar("T")

Curves = dict[str, list[float]]
"""Columns of a CSV of numbers, by name, all of one length; NaN where a cell is empty."""


@dataclass(frozen=True)
class Record:
    """A JSON object in a run's file. What it lacks is an `InputError` that names file, key and command."""

    file: Path
    command: str
    """Makes the file anew."""
    values: Mapping[str, Any]
    at: str = ""
    """Where in the file the object lies: empty, or keys joined by dots, with a dot at the end."""

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def number(self, key: str) -> float:
        """The int or float at `key`."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._unfit(key, value, "a number")
        return value

    def text(self, key: str) -> str:
        """The string at `key`."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self._unfit(key, value, "a string")
        return value

    def record(self, key: str) -> Record:
        """The object at `key`."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self._unfit(key, value, "an object")
        return Record(self.file, self.command, value, f"{self.at}{key}.")

    def records(self, key: str) -> list[Record]:
        """The list of objects at `key`."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._unfit(key, value, "a list of objects")
        return [Record(self.file, self.command, item, f"{self.at}{key}.{i}.") for i, item in enumerate(value)]

    def all_records(self) -> list[Record]:
        """The whole object, where all its values are objects."""
        return [self.record(key) for key in self.values]

    def texts(self, key: str) -> list[str]:
        """The list of strings at `key`."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._unfit(key, value, "a list of strings")
        return value

    def numbers(self) -> dict[str, float]:
        """The whole object, where all its values are numbers."""
        return {key: self.number(key) for key in self.values}

    def number_list(self, key: str) -> list[float]:
        """The list of numbers at `key`."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
            raise self._unfit(key, value, "a list of numbers")
        return value

    def number_lists(self) -> dict[str, list[float]]:
        """The whole object, where all its values are lists of numbers, none of them empty."""
        for key, value in self.values.items():
            if value == []:
                raise self._unfit(key, value, "at least one number")
        return {key: self.number_list(key) for key in self.values}

    def _unfit(self, key: str, value: object, expected: str) -> InputError:
        found = "nothing" if value is None else json.dumps(value)[:40]
        return InputError(
            f"{self.file}: {self.at}{key} is {found}; expected {expected}, as this version writes it; run: {self.command}"
        )


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How one figure of the teacher's distribution spreads over train positions, at one temperature."""

    figure: str
    """`entropy` in nats, or `retained_mass`, 0 to 1."""
    temperature: str
    positions: str
    """`masked` or `unmasked`."""
    edges: tuple[float, ...]
    """Of the bins, ascending, one more than `shares`."""
    shares: tuple[float, ...]
    """Per bin; they sum to 1."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """All that the report shows, by file."""

    teacher: Record
    teacher_curves: Curves
    cache_run: Record
    cache: Record
    histograms: list[Histogram]
    speed: Record
    provenance: Record
    config: Config
    """The parameters of the run, as its provenance has them."""
    training: Record
    training_curves: Curves
    validation_curves: Curves
    evaluation: Record
    comparison: Record | None
    finetuning: Record | None
    """Scores on downstream tasks, of `pipeline finetune`."""
    speed_on_text: Record | None
    """Of `pipeline evaluate --speed`; `speed` is measured before training."""

    @property
    def objective(self) -> Objective:
        """What the teacher predicts."""
        return self.config.teacher.objective


def read_run_files(artefacts: Artefacts, student: str) -> RunFiles:
    """Read what the stages left of the run of `student`.

    Raises `InputError`, naming the command that makes it, for a file that is missing or does not fit. Optional are
    `runs/comparison.json`, `runs/finetune/summary.json` and `runs/speed.json`.
    """
    if not (artefacts.student / "config.json").is_file():
        raise InputError(f"{artefacts.student} is missing: the trained student; run: pipeline train-student")
    runs, train = artefacts.runs, "pipeline train-student"
    training = _read_json(runs / "train.json", train)
    if training.text("student") != student:
        raise InputError(
            f"{training.file} is of student {training.text('student')!r}; expected {student!r} (train.student); run: {train}"
        )
    evaluation = _read_json(runs / "evaluation.json", "pipeline evaluate")
    if evaluation.text("weights") != training.text("weights"):
        raise InputError(
            f"{evaluation.file} is of another student ({evaluation.text('weights')}) than {training.file} "
            f"({training.text('weights')}); expected figures of one student; run: {evaluation.command}"
        )
    provenance = _read_json(runs / "provenance.json", train)
    config = _recorded_config(provenance)
    return RunFiles(
        teacher=_read_json(runs / "teacher.json", "pipeline teacher"),
        teacher_curves=_read_curves(runs / "teacher.csv", "pipeline teacher", ("step", "loss", "learning_rate")),
        cache_run=_read_json(artefacts.cache_run, "pipeline cache-teacher"),
        cache=_read_json(artefacts.cache_figures, "pipeline cache-teacher"),
        histograms=_read_histograms(artefacts.cache_distributions, "pipeline cache-teacher"),
        speed=_read_json(artefacts.speed(student), f"pipeline init-student {student}"),
        provenance=provenance,
        config=config,
        training=training,
        training_curves=_read_curves(
            runs / "train.csv", train, ("step", "loss", *config.train.weights.used, "learning_rate", "grad_norm")
        ),
        validation_curves=_read_curves(runs / "validation.csv", train, ("step", *closest(config.teacher.objective))),
        evaluation=evaluation,
        comparison=_read_optional(artefacts.comparison, "pipeline compare"),
        finetuning=_read_optional(artefacts.finetuning_summary, "pipeline finetune"),
        speed_on_text=_read_optional(artefacts.speed_on_text, "pipeline evaluate --speed"),
    )


def _recorded_config(provenance: Record) -> Config:
    try:
        return load_config(provenance.record("parameters").values)
    except ConfigError as error:
        raise InputError(
            f"{provenance.file} holds parameters that this version does not know: {error}; run: {provenance.command}"
        ) from error


def _read_optional(file: Path, command: str) -> Record | None:
    return _read_json(file, command) if file.is_file() else None


def _read_json(file: Path, command: str) -> Record:
    values = _read(file, command, json.loads)
    if not isinstance(values, dict):
        raise InputError(f"{file} holds no JSON object; run: {command}")
    return Record(file, command, values)


def _read_curves(file: Path, command: str, columns: Sequence[str]) -> Curves:
    rows = _read_rows(file, command, columns)
    return {column: [_number(row[column], file, command) for row in rows] for column in columns}


def _read_histograms(file: Path, command: str) -> list[Histogram]:
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for row in _read_rows(file, command, ("figure", "temperature", "positions", "low", "high", "share")):
        low, high, share = (_number(row[column], file, command) for column in ("low", "high", "share"))
        groups.setdefault((row["figure"], row["temperature"], row["positions"]), []).append((low, high, share))
    histograms = []
    for (figure, temperature, positions), unsorted in groups.items():
        bins = sorted(unsorted)
        histograms.append(
            Histogram(
                figure=figure,
                temperature=temperature,
                positions=positions,
                edges=(bins[0][0], *(high for _, high, _ in bins)),
                shares=tuple(share for _, _, share in bins),
            )
        )
    return histograms


def _read_rows(file: Path, command: str, columns: Sequence[str]) -> list[dict[str, str]]:
    def parse(text: str) -> list[dict[str, str]]:
        reader = csv.DictReader(text.splitlines(), restval="")
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        return list(reader)

    return _read(file, command, parse)


def _read(file: Path, command: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing; the report is made of it; bring it from where it was made, or run: {command}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); run: {command}") from error


def _number(text: str, file: Path, command: str) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        raise InputError(f"{file} has {text[:40]!r} where a number is expected; run: {command}") from None
