"""The table of `pipeline compare`: rows, their figures over the seeds, and their forms in JSON, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from stages.figures import LABELS, OF_THE_TEACHER, PREDICTION, Objective, labels_of

TEACHER, UNTRAINED = "teacher", "student before training"
"""Rows that are not runs."""

SPREAD = "mean over the seeds ± half the distance between the lowest and the highest"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: the figures of a model, one value per seed."""

    name: str
    trained: bool
    values: Mapping[str, Sequence[float]]
    steps: int = 0
    seconds: Sequence[float] = ()

    @classmethod
    def teacher(cls, evaluation: Mapping[str, Any], objective: Objective) -> Row:
        """The teacher compared with itself; its cached targets say what its loss is."""
        measured = {name: evaluation[f"teacher_{name}"] for name in PREDICTION[objective][:2]}
        of_itself = {name: value for name, value in OF_THE_TEACHER.items() if name in labels_of(objective)}
        figures = {**of_itself, **measured}
        return cls(name=TEACHER, trained=False, values={name: [value] for name, value in figures.items()})

    @classmethod
    def untrained(cls, evaluation: Mapping[str, Any]) -> Row:
        """The initial weights of the student."""
        return cls(name=UNTRAINED, trained=False, values=_figures([evaluation]))

    @classmethod
    def of_runs(cls, name: str, runs: Sequence[Mapping[str, Any]]) -> Row:
        """One run, from the figures that train-student and evaluate wrote for each seed."""
        return cls(
            name=name,
            trained=True,
            values=_figures(runs),
            steps=runs[0]["steps"],
            seconds=[run["seconds"] for run in runs],
        )

    def cells(self, objective: Objective) -> list[str]:
        """Name, and each figure as `SPREAD` says."""
        return [self.name, *(_cell(self.values.get(figure, ())) for figure in labels_of(objective))]

    def to_json(self) -> dict[str, Any]:
        """As it stands in runs/comparison.json."""
        values = {name: list(found) for name, found in self.values.items()}
        return {
            "name": self.name,
            "trained": self.trained,
            "values": values,
            "steps": self.steps,
            "seconds": list(self.seconds),
        }


def header(objective: Objective) -> list[str]:
    """Names of the columns of `Row.cells`."""
    return ["", *labels_of(objective).values()]


def markdown(title: str, rows: Iterable[Row], objective: Objective) -> str:
    """The table in Markdown, its title above and what the numbers are below."""
    names = header(objective)
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *(row.cells(objective) for row in rows)]
    table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    return f"{title}\n\n{table}\n{SPREAD.capitalize()}; KL in nats at T = 1, over the full vocabulary.\n"


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Each figure that all runs have (no cosine between hidden states of different width), one value per run."""
    return {name: [run[name] for run in runs] for name in LABELS if all(name in run for run in runs)}


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    half_range = (max(values) - min(values)) / 2
    return _number(mean(values)) + (f" ± {half_range:.3f}" if len(values) > 1 else "")


def _number(value: float) -> str:
    """Three decimals; two digits where those would say zero of what is not."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
