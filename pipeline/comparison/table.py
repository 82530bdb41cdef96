"""The table of `pipeline compare`: rows, their figures over the seeds, and their forms in JSON, Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from pipeline.comparison.scores import examples_of, same_examples
from stages.figures import LABELS, OF_THE_TEACHER, PREDICTION, Objective, labels_of
from stages.finetuning.summary import TaskScores

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
    achieved: Mapping[str, Sequence[TaskScores]] = field(default_factory=dict)
    """Task -> the results of `pipeline finetune` for each model that was fine-tuned."""

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
    def of_runs(
        cls, name: str, runs: Sequence[Mapping[str, Any]], achieved: Mapping[str, Sequence[TaskScores]] | None = None
    ) -> Row:
        """One run, from the figures that train-student and evaluate wrote for each seed."""
        return cls(
            name=name,
            trained=True,
            values=_figures(runs),
            steps=runs[0]["steps"],
            seconds=[run["seconds"] for run in runs],
            achieved=achieved or {},
        )

    @property
    def scores(self) -> dict[str, list[float]]:
        """Task -> score, a fraction of 1: the median over the seeds of a fine-tuning, a value for each model."""
        return {task: [of_model.score for of_model in models] for task, models in self.achieved.items()}

    @property
    def examples(self) -> dict[str, str]:
        """Task -> digest of the examples that were scored."""
        return {task: examples_of(models) for task, models in self.achieved.items()}

    def cells(self, objective: Objective, tasks: Sequence[str] = ()) -> list[str]:
        """Name, and each figure and score as `SPREAD` says."""
        return [
            self.name,
            *(cell(self.values.get(figure, ())) for figure in labels_of(objective)),
            *(cell(self.scores.get(task, ())) for task in tasks),
        ]

    def variation(self, base: Row) -> dict[str, float]:
        """What the means of this row's figures, and of its scores on the same examples, differ by from those of `base`."""
        same, _ = self.scored_as(base)
        ours, theirs = ({**row.values, **{task: row.scores[task] for task in same}} for row in (self, base))
        return {name: mean(ours[name]) - mean(theirs[name]) for name in ours if name in theirs}

    def scored_as(self, base: Row) -> tuple[list[str], list[str]]:
        """`same_examples` of this row and `base`."""
        return same_examples(self.name, self.examples, base.name, base.examples)

    def to_json(self) -> dict[str, Any]:
        """As it stands in runs/comparison.json."""
        values = {name: list(found) for name, found in self.values.items()}
        return {
            "name": self.name,
            "trained": self.trained,
            "values": values,
            "steps": self.steps,
            "seconds": list(self.seconds),
            **({"scores": self.scores, "evaluation_digests": self.examples} if self.achieved else {}),
        }


def tasks_of(rows: Iterable[Row]) -> list[str]:
    """The tasks on which any of them has a score."""
    return list(dict.fromkeys(task for row in rows for task in row.scores))


def header(objective: Objective, tasks: Sequence[str] = ()) -> list[str]:
    """Names of the columns of `Row.cells`."""
    return ["", *labels_of(objective).values(), *tasks]


def variation_cells(row: Row, base: Row, objective: Objective, tasks: Sequence[str] = ()) -> list[str]:
    """Name, and what each figure and score differs by from the one of `base`."""
    found = row.variation(base)
    return [row.name, *(signed(found.get(name)) for name in (*labels_of(objective), *tasks))]


def markdown(title: str, rows: Sequence[Row], objective: Objective, against: Row | None = None) -> str:
    """The table in Markdown, its title above and what the numbers are below; then the differences from `against`, and what has none."""
    tasks = tasks_of(rows)
    names = header(objective, tasks)
    text = f"{title}\n\n{markdown_table(names, [row.cells(objective, tasks) for row in rows])}\n"
    text += f"{SPREAD.capitalize()}; KL in nats at T = 1, over the full vocabulary{_OF_SCORES if tasks else ''}.\n"
    if against is not None:
        others = [row for row in rows if row.trained and row is not against]
        differences = [variation_cells(row, against, objective, tasks) for row in others]
        text += f"\nDifference from {against.name}\n\n{markdown_table(names, differences)}"
        left_out = [said for row in others for said in row.scored_as(against)[1]]
        text += "\n" * bool(left_out) + "".join(f"- {said}\n" for said in left_out)
    return text


_OF_SCORES = "; scores on tasks as fractions of 1, the median over the seeds of their fine-tuning"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: names in the first column, figures in the others."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _figures(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Each figure that all runs have (no cosine between hidden states of different width), one value per run."""
    return {name: [run[name] for run in runs] for name in LABELS if all(name in run for run in runs)}


def cell(values: Sequence[float]) -> str:
    """As `SPREAD` says; `-` where there are none."""
    if not values:
        return "-"
    half_range = (max(values) - min(values)) / 2
    return _number(mean(values)) + (f" ± {half_range:.3f}" if len(values) > 1 else "")


def _number(value: float) -> str:
    """Three decimals; two digits where those would say zero of what is not."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def signed(difference: float | None) -> str:
    """A difference of two figures; `-` where there is none."""
    return "-" if difference is None else f"{difference:+.3f}"
