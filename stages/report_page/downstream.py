"""What fine-tuned models achieve on downstream tasks: the content of `runs/finetune/summary.json`, the paper's figures below it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from stages.figures import TASK_FIGURES
from stages.report_page import published
from stages.report_page.dots import Line, draw_dots
from stages.report_page.drawing import Plot
from stages.report_page.parts import Part
from stages.report_page.run_files import Record
from stages.report_page.tables import Cell, Column, Table
from stages.report_page.units import count, listed, millions, percent, points, spread, unbroken

TEACHER = "teacher"
"""The model that the others are measured by."""

_IN_PAPER = "DistilBERT paper"
_TRAINED = "models/student"
"""Where the student of this run lies."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model achieved on a task; fractions of 1."""

    kind: str
    scores: list[float]
    """By seed."""
    figures: Mapping[str, float]
    """Median of each official figure."""
    examples: float
    """That were scored."""
    digest: str
    """Of these examples."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that was fine-tuned."""

    name: str
    path: str
    weights: str | None
    """First digits of their digest; None: the file is of a version that did not say so."""
    parameters: float
    tasks: Mapping[str, Task]
    means: Mapping[str, float]
    kept: Mapping[str, float]
    """Shares of the teacher's score, by task and by mean; empty for the teacher."""


@dataclass(frozen=True)
class _Mean:
    """A column that is the mean over several tasks."""

    key: str
    column: Column
    tasks: Sequence[str]


def downstream_part(summary: Record, student: str, folder: Path) -> Part:
    """Tables, plots and notes of the scores in `summary.json`; `student` is the digest of this run's weights.

    The plots go into `folder`.
    """
    models = read_models(summary)
    names = sorted({name for model in models for name in model.tasks}, key=lambda name: _place(models, name))
    in_glue = {name for one in summary.record("models").all_records() for name in one.texts("glue_tasks")}
    tables = [_scores_table(models, names, in_glue)]
    if figures := _figures_table(models, names):
        tables.append(figures)
    return Part(
        notes=_notes(models, student),
        tables=tables,
        plots=[_plot(models, name, folder) for name in names],
    )


def read_models(summary: Record) -> list[Model]:
    """The models of `summary.json`: the teacher, what came of this run's student, the others."""
    models, kept = summary.record("models"), summary.record("retention")
    found = [
        Model(
            name=name,
            path=model.text("path"),
            weights=model.text("weights") if "weights" in model else None,
            parameters=model.number("parameters"),
            tasks={task: _task(model.record("tasks").record(task)) for task in model.record("tasks").values},
            means=model.record("means").numbers(),
            kept=kept.record(name).numbers() if name in kept else {},
        )
        for name, model in ((name, models.record(name)) for name in models.values)
    ]
    return sorted(found, key=lambda model: (model.name != TEACHER, model.path != _TRAINED))


def _task(task: Record) -> Task:
    return Task(
        kind=task.text("kind"),
        scores=task.number_list("scores"),
        figures=task.record("figures").numbers(),
        examples=task.record("examples").number("evaluation"),
        digest=task.text("evaluation_digest"),
    )


def _means(names: Sequence[str], in_glue: set[str]) -> list[_Mean]:
    """The means that are to be shown: of GLUE's tasks, without WNLI where it is among them, and of all where there are others."""
    glue = [name for name in names if name in in_glue]
    means = []
    if len(glue) > 1:
        of = f"mean, {len(glue)} of {len(published.GLUE_TASKS)}"
        means.append(_Mean("macro", Column("GLUE", of), glue))
    if "WNLI" in glue and len(glue) > 1:
        without = [name for name in glue if name != "WNLI"]
        means.append(_Mean("macro_without_wnli", Column("GLUE", "without WNLI"), without))
    if len(names) > max(1, len(glue)):
        means.append(_Mean("all", Column("All", f"mean of {len(names)}"), names))
    return means


def _scores_table(models: Sequence[Model], names: Sequence[str], in_glue: set[str]) -> Table:
    """A row for each model, and below them the paper's; a column for each mean and each task."""
    means = _means(names, in_glue)
    kinds = {name: _first(models, name).kind for name in names}
    students = [model for model in models if model.name != TEACHER]
    best_mean = {mean.key: _best([model.means.get(mean.key) for model in students]) for mean in means}
    best_task = {name: _best([_score(model, name) for model in students]) for name in names}
    rows = []
    for model in models:
        cells = [Cell(model.name, detail=millions(model.parameters))]
        for mean in means:
            value = model.means.get(mean.key)
            over = [name for name in mean.tasks if name in model.tasks]
            few = "" if len(over) == len(mean.tasks) else f" (of {len(over)})"
            cells.append(
                Cell("–")
                if value is None
                else Cell(points(value) + few, _kept(model, mean.key), best=_is(value, best_mean[mean.key], model))
            )
        for name in names:
            if name in model.tasks:
                best = _is(_score(model, name), best_task[name], model)
                cells.append(Cell(spread(model.tasks[name].scores), _kept(model, name), best=best))
            else:
                cells.append(Cell("–"))
        rows.append(cells)
    rows += _rows_of_the_paper(means, kinds)
    return Table(
        name="task-scores",
        caption=(
            f"Scores of the fine-tuned models in %: {_seeds(models, names)}, ± half the distance between the lowest and the "
            "highest. Small: what a student keeps of the teacher's score. Last the DistilBERT paper's models, their means over "
            "the same tasks."
        ),
        columns=[
            Column("Model", "parameters"),
            *(mean.column for mean in means),
            *(Column(unbroken(name), f"{count(_first(models, name).examples)} scored") for name in names),
        ],
        rows=rows,
    )


def _rows_of_the_paper(means: Sequence[_Mean], kinds: Mapping[str, str]) -> list[list[Cell]]:
    """Its models as far as they were scored on any of these tasks; the same task may stand there under a name of its own."""
    rows = []
    for model, scores in published.SCORES.items():
        if not any(kind in scores for kind in kinds.values()):
            continue
        cells = [Cell(model, detail=_IN_PAPER)]
        for value, base in [
            *(
                tuple(
                    published.mean_score(who, [kinds[name] for name in mean.tasks])
                    for who in (model, published.TEACHER)
                )
                for mean in means
            ),
            *((scores.get(kind), published.SCORES[published.TEACHER].get(kind)) for kind in kinds.values()),
        ]:
            share = percent(value / base) if value and base and model != published.TEACHER else ""
            cells.append(Cell("–" if value is None else f"{value:.1f}", detail=share))
        rows.append(cells)
    return rows


def _figures_table(models: Sequence[Model], names: Sequence[str]) -> Table | None:
    """The official figures of the tasks that have several; None where no task has."""
    columns = [
        (name, figure)
        for name in names
        if len(_first(models, name).figures) > 1
        for figure in TASK_FIGURES
        if figure in _first(models, name).figures
    ]
    if not columns:
        return None
    rows = [
        [
            Cell(model.name),
            *(
                Cell(points(model.tasks[name].figures[figure]))
                if name in model.tasks and figure in model.tasks[name].figures
                else Cell("–")
                for name, figure in columns
            ),
        ]
        for model in models
    ]
    squad = {name for name in names if _first(models, name).kind == "SQuAD"}
    if squad:
        figures_of = {
            model: {"exact_match": match, "f1": published.SCORES[model]["SQuAD"]}
            for model, match in published.EXACT_MATCH.items()
        }
        rows += [
            [
                Cell(model, detail=_IN_PAPER),
                *(Cell(f"{figures[figure]:.1f}" if name in squad else "–") for name, figure in columns),
            ]
            for model, figures in figures_of.items()
        ]
    return Table(
        name="task-figures",
        caption="The official figures of tasks that have several, medians over the seeds in %. Their mean is the score; SQuAD's is F1.",
        columns=[Column(""), *(Column(unbroken(name), TASK_FIGURES[figure]) for name, figure in columns)],
        rows=rows,
    )


def _plot(models: Sequence[Model], name: str, folder: Path) -> Plot:
    """A dot per seed and model; the teacher's median is a line."""
    shown = [model for model in models if name in model.tasks]
    teacher = next((model for model in shown if model.name == TEACHER), None)
    measured_by = "; strokes: the teacher's median" if teacher else ""
    return draw_dots(
        [
            Line(
                label=model.name,
                values=[100 * score for score in model.tasks[name].scores],
                shown=points(median(model.tasks[name].scores)),
            )
            for model in shown
        ],
        folder,
        name=f"downstream-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}",
        title=name,
        unit="score, %",
        caption=f"One dot per seed and model, the median at the right{measured_by}; further right is better.",
        mark=None if teacher is None else 100 * median(teacher.tasks[name].scores),
    )


def _notes(models: Sequence[Model], student: str) -> list[str]:
    notes = [
        f"The scores of {model.name} are of another student (weights {model.weights}) than this run's ({student}). "
        "Run pipeline finetune --replace to make them anew."
        for model in models
        if model.path == _TRAINED and model.weights not in (None, student)
    ]
    teacher = next((model for model in models if model.name == TEACHER), None)
    if teacher is not None:
        notes += [
            f"{model.name} and the teacher were scored on different examples of {listed(different)}: no share is given there."
            for model in models
            if (
                different := [
                    name
                    for name, task in model.tasks.items()
                    if name in teacher.tasks and teacher.tasks[name].digest != task.digest
                ]
            )
        ]
    return notes


def _seeds(models: Sequence[Model], names: Sequence[str]) -> str:
    """`medians over 5 seeds`, or for which tasks over how many."""
    numbers: dict[str, list[str]] = {}
    for name in names:
        some = sorted({len(model.tasks[name].scores) for model in models if name in model.tasks})
        numbers.setdefault(" to ".join(map(str, some)), []).append(name)
    if len(numbers) == 1:
        of = next(iter(numbers))
        return "of one seed" if of == "1" else f"medians over {of} seeds"
    return "medians over the seeds, " + "; ".join(f"{of} for {listed(where)}" for of, where in numbers.items())


def _place(models: Sequence[Model], name: str) -> tuple[int, str]:
    """For sorting: in the paper's order, others after those."""
    order = [*published.GLUE_TASKS, "IMDb", "SQuAD"]
    kind = _first(models, name).kind
    return order.index(kind) if kind in order else len(order), name


def _first(models: Iterable[Model], name: str) -> Task:
    return next(model.tasks[name] for model in models if name in model.tasks)


def _score(model: Model, name: str) -> float | None:
    return median(model.tasks[name].scores) if name in model.tasks else None


def _kept(model: Model, key: str) -> str:
    return percent(model.kept[key]) if key in model.kept else ""


def _best(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return max(there) if len(there) > 1 else None


def _is(value: float | None, best: float | None, model: Model) -> bool:
    return model.name != TEACHER and value is not None and value == best
