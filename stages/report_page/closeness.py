"""How close students are to the teacher on held-out text: the figures, what each means, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stages.figures import LABELS, OF_THE_TEACHER, PREDICTION, Objective
from stages.report_page.run_files import Record, RunFiles
from stages.report_page.tables import Cell, Column, Table
from stages.report_page.units import NO_BREAK, count, duration, number, percent


@dataclass(frozen=True)
class Measure:
    """One held-out figure."""

    key: str
    label: str
    unit: str
    """Which positions, and the unit where the number does not show it."""
    lower_is_better: bool
    meaning: str
    show: Callable[[float], str]


_COSINE = Measure(
    "hidden_cosine",
    "Cosine",
    "all",
    False,
    "mean cosine between the last hidden states of student and teacher, all positions; only where both have one size",
    number,
)

_MASKED = (
    Measure(
        "kl_masked",
        "KL",
        "masked, nats",
        True,
        "KL(teacher ‖ student) over the whole vocabulary at T = 1, mean over masked tokens; 0: the same predictions",
        number,
    ),
    Measure("kl_all", "KL", "all, nats", True, "the same over all positions that are cached, masked or not", number),
    Measure(
        "agreement_masked",
        "Agreement",
        "masked",
        False,
        "share of masked tokens for which student and teacher name the same most likely token",
        percent,
    ),
    Measure("agreement_all", "Agreement", "all", False, "the same over all positions that are cached", percent),
    Measure(
        "mlm_loss",
        "MLM loss",
        "masked, nats",
        True,
        "cross-entropy with the true token, mean over masked tokens",
        number,
    ),
    Measure(
        "masked_accuracy",
        "Accuracy",
        "masked",
        False,
        "share of masked tokens whose true token is named first",
        percent,
    ),
    _COSINE,
)

_CAUSAL = (
    Measure(
        "kl_all",
        "KL",
        "all, nats",
        True,
        "KL(teacher ‖ student) over the whole vocabulary at T = 1, mean over all positions that are cached; 0: the same predictions",
        number,
    ),
    Measure(
        "agreement_all",
        "Agreement",
        "all",
        False,
        "share of these positions at which student and teacher name the same most likely next token",
        percent,
    ),
    Measure(
        "clm_loss",
        "CLM loss",
        "next token, nats",
        True,
        "cross-entropy with the token that follows, mean over all tokens that have one",
        number,
    ),
    Measure(
        "next_accuracy",
        "Accuracy",
        "next token",
        False,
        "share of tokens for which the one that follows is named first",
        percent,
    ),
    _COSINE,
)

MEASURES: dict[Objective, tuple[Measure, ...]] = {"masked": _MASKED, "causal": _CAUSAL}
"""By what the teacher predicts."""


def _columns(objective: Objective) -> list[Column]:
    return [
        Column(measure.label, measure.unit, "↓ is better" if measure.lower_is_better else "↑ is better")
        for measure in MEASURES[objective]
    ]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the comparison: each figure once per seed."""

    name: str
    trained: bool
    steps: int
    seconds: list[float]
    values: dict[str, list[float]]
    tasks: dict[str, list[float]]
    """Scores on downstream tasks, fractions of 1, one for each student that was fine-tuned: medians over the seeds of its fine-tuning."""
    examples: dict[str, str]
    """Digests of the examples that they are of; empty where the file is of a version that did not say so."""


def comparison_runs(comparison: Record) -> list[Run]:
    """The rows of `runs/comparison.json`, in its order."""
    return [
        Run(
            name=row.text("name"),
            trained=bool(row.values.get("trained")),
            steps=int(row.number("steps")),
            seconds=row.number_list("seconds") if "seconds" in row else [],
            values={name: row.record("values").number_list(name) for name in LABELS if name in row.record("values")},
            tasks=row.record("scores").number_lists() if "scores" in row else {},
            examples=_texts(row.record("evaluation_digests")) if "evaluation_digests" in row else {},
        )
        for row in comparison.records("rows")
    ]


def _texts(record: Record) -> dict[str, str]:
    return {name: record.text(name) for name in record.values}


def this_run_table(files: RunFiles) -> Table:
    """Teacher and student of this run, on the split of the evaluation and on validation."""
    measures, (loss, accuracy, tokens) = MEASURES[files.objective], PREDICTION[files.objective]
    held_out = {files.evaluation.text("split"): files.evaluation}
    held_out.setdefault("validation", files.training.record("validation"))
    rows = []
    for split, figures in held_out.items():
        teacher = {
            **{key: value for key, value in OF_THE_TEACHER.items() if key in figures},
            **{name: figures.number(f"teacher_{name}") for name in (loss, accuracy)},
        }
        student = {measure.key: figures.number(measure.key) for measure in measures if measure.key in figures}
        name = files.training.text("student")
        for who, values in (("teacher", teacher), (f"student {name}", student)):
            rows.append([Cell(who, detail=split), *(_cell(measure, values) for measure in measures)])
    sizes = "; ".join(
        f"{split}: {count(figures.number(tokens))} {tokens.replace('_', ' ')}, {count(figures.number('positions'))} positions"
        for split, figures in held_out.items()
    )
    return Table(
        name="this-run",
        caption=f"This run, on text that the student was not trained on ({sizes}).",
        columns=[Column("", "", ""), *_columns(files.objective)],
        rows=rows,
    )


def comparison_table(comparison: Record, runs: Sequence[Run], objective: Objective) -> Table:
    """All rows, the mean over seeds and their range; the best mean of the trained ones is marked."""
    trained, measures = [run for run in runs if run.trained], MEASURES[objective]
    best = {measure.key: _best(measure, trained) for measure in measures}
    rows = []
    for run in runs:
        cells = [_mean_cell(measure, run, best[measure.key]) for measure in measures]
        time = Cell(duration(_mean(run.seconds)) if run.trained and run.seconds else "–")
        rows.append([Cell(run.name), *cells, time])
    seeds = comparison.number_list("seeds")
    split = comparison.text("split")
    tokens = PREDICTION[objective][2]
    if tokens in comparison:
        split += f" ({count(comparison.number(tokens))} {tokens.replace('_', ' ')})"
    over = (
        f"the mean over {len(seeds)} seeds and, below it, the lowest and the highest" if len(seeds) > 1 else "one seed"
    )
    caption = f"All runs of the comparison, on {split}: {over}. {_steps(trained)}"
    return Table(
        name="comparison",
        caption=caption,
        columns=[Column("", "", ""), *_columns(objective), Column("Training", "time", "")],
        rows=rows,
    )


def _steps(trained: Sequence[Run]) -> str:
    """How long the students of the comparison were trained."""
    steps = {run.steps for run in trained}
    if len(steps) == 1:
        return f"Each was trained for {count(steps.pop())} steps."
    return f"Not all were trained alike: {', '.join(f'{run.name} for {count(run.steps)} steps' for run in trained)}."


def _best(measure: Measure, runs: Sequence[Run]) -> float | None:
    means = [_mean(run.values[measure.key]) for run in runs if run.values.get(measure.key)]
    if len(means) < 2:
        return None
    return min(means) if measure.lower_is_better else max(means)


def _mean_cell(measure: Measure, run: Run, best: float | None) -> Cell:
    values = run.values.get(measure.key)
    if not values:
        return Cell("–")
    return _spread(values, measure.show, best=run.trained and _mean(values) == best)


def _spread(values: Sequence[float], show: Callable[[float], str], *, best: bool = False) -> Cell:
    detail = f"{show(min(values))}–{show(max(values))}" if len(values) > 1 else ""
    return Cell(show(_mean(values)), detail=detail.replace(f"{NO_BREAK}%", ""), best=best)


def _cell(measure: Measure, values: Mapping[str, float]) -> Cell:
    return Cell(measure.show(values[measure.key])) if measure.key in values else Cell("–")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
