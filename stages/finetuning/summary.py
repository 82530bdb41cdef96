"""All results of fine-tuning side by side: medians over the seeds, GLUE's macro score, and what a student keeps of the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, median
from typing import Any

from stages.context import Context
from stages.errors import InputError
from stages.figures import TASK_FIGURES
from stages.finetuning.picture import draw
from stages.finetuning.results import models_in, results_of
from stages.models import DIGEST_SHOWN
from stages.outputs import write_json, write_text
from stages.tasks import IN_MACRO, TASKS

TEACHER = "teacher"
"""The model that the others are measured by."""

SPREAD = "median over the seeds ± half the distance between the lowest and the highest, in %"


def _by_seed(results: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Figure -> its values in the results, in the order of the table."""
    return {name: [figures[name] for figures in results] for name in TASK_FIGURES if name in results[0]}


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """What a model says to the examples of a task that it was not trained on."""

    figures: Mapping[str, Sequence[float]]
    """Official figure -> its values by seed."""
    majority: Mapping[str, float]
    """The same of always saying the most frequent class."""

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        return {
            "figures": {figure: median(values) for figure, values in self.figures.items()},
            "majority": dict(self.majority),
        }


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """What a model achieved on one task. All values are fractions of 1."""

    kind: str
    seeds: Sequence[int]
    scores: Sequence[float]
    """By seed."""
    figures: Mapping[str, Sequence[float]]
    """Official figure -> its values by seed."""
    data: str
    """Digest of the examples that it was scored on."""
    examples: Mapping[str, int]
    seconds: Sequence[float]
    validation: Sequence[float] = ()
    """Scores by seed on the part to choose by, where there is one."""
    zero_shot: Mapping[str, ZeroShot] = field(default_factory=dict)
    """What it says to other tasks, by their names."""

    @classmethod
    def of(cls, results: Sequence[Mapping[str, Any]]) -> TaskScores:
        """From the results of its seeds, which have the same parameters and data. Raises `InputError` where they have not."""
        identities = [{**result["identity"], "seed": None} for result in results]
        if any(identity != identities[0] for identity in identities):
            first = results[0]
            raise InputError(
                f"the results of {first['model']} on {first['task']} are of different parameters or data, seed by seed; run: "
                f"pipeline finetune --model {first['model']} {first['task']}, or remove those that are not wanted"
            )
        return cls(
            kind=results[0]["kind"],
            seeds=[result["seed"] for result in results],
            scores=[result["score"] for result in results],
            figures=_by_seed([result["figures"] for result in results]),
            data=results[0]["identity"]["data"]["evaluation"],
            examples=results[0]["examples"],
            seconds=[result["seconds"] for result in results],
            validation=[result["validation"]["score"] for result in results if "validation" in result],
            zero_shot={
                name: ZeroShot(
                    figures=_by_seed([result["zero_shot"][name]["figures"] for result in results]),
                    majority=asked["majority"],
                )
                for name, asked in results[0].get("zero_shot", {}).items()
            },
        )

    @property
    def score(self) -> float:
        """The median over the seeds."""
        return median(self.scores)


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What a model achieved on all its tasks."""

    name: str
    path: str
    parameters: int
    """With a head."""
    weights: str
    """Digest of its files."""
    tasks: Mapping[str, TaskScores]
    means: Mapping[str, float] = field(init=False)
    """`macro`: mean score over the tasks of GLUE that are there; `macro_without_wnli`; `all`: over all tasks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "means", means_of({name: task.score for name, task in self.tasks.items()}))

    def to_json(self) -> dict[str, Any]:
        """As it stands in summary.json."""
        tasks = {
            name: {
                "kind": task.kind,
                "seeds": list(task.seeds),
                "scores": list(task.scores),
                "score": task.score,
                "lowest": min(task.scores),
                "highest": max(task.scores),
                "figures": {figure: median(values) for figure, values in task.figures.items()},
                "examples": dict(task.examples),
                "seconds": list(task.seconds),
                "evaluation_digest": task.data,
                **({"validation": median(task.validation)} if task.validation else {}),
                **(
                    {"zero_shot": {other: asked.to_json() for other, asked in task.zero_shot.items()}}
                    if task.zero_shot
                    else {}
                ),
            }
            for name, task in self.tasks.items()
        }
        return {
            "path": self.path,
            "parameters": self.parameters,
            "weights": self.weights[:DIGEST_SHOWN],
            "tasks": tasks,
            "means": dict(self.means),
            "glue_tasks": [name for name in IN_MACRO if name in self.tasks],
        }


def means_of(scores: Mapping[str, float]) -> dict[str, float]:
    """Means of the scores of tasks, each where it has any. A task of GLUE is one that is called so."""
    groups = {
        "macro": [score for name, score in scores.items() if name in IN_MACRO],
        "macro_without_wnli": [score for name, score in scores.items() if name in IN_MACRO and name != "WNLI"],
        "all": list(scores.values()),
    }
    return {name: mean(found) for name, found in groups.items() if found}


def retention(teacher: ModelScores, student: ModelScores) -> dict[str, float]:
    """Student's score by teacher's, for every task that both have on the same examples, and for the means over these.

    A task on which the teacher has no score above 0 has no share.
    """
    shared = [name for name, task in student.tasks.items() if _same(teacher.tasks.get(name), task)]
    ours, theirs = ({name: model.tasks[name].score for name in shared} for model in (student, teacher))
    pairs = {name: (ours[name], theirs[name]) for name in shared}
    of_means = means_of(ours), means_of(theirs)
    pairs.update({name: (value, of_means[1][name]) for name, value in of_means[0].items()})
    return {name: student_score / base for name, (student_score, base) in pairs.items() if base > 0}


def _same(one: TaskScores | None, other: TaskScores) -> bool:
    return one is not None and one.data == other.data


def publish_summary(context: Context) -> None:
    """Write `runs/finetune/summary.json`, `.md` and `.png` from all results that are there, and show the table."""
    folder = context.artefacts.finetuning
    models = [scores for path in models_in(folder) if (scores := _scores_of(*results_of(path), path.name)) is not None]
    if not models:
        return
    teacher = next((model for model in models if model.name == TEACHER), None)
    kept = {model.name: retention(teacher, model) for model in models if teacher is not None and model is not teacher}
    write_json(
        context.artefacts.finetuning_summary,
        {"models": {model.name: model.to_json() for model in models}, "retention": kept},
    )
    columns, rows = table(models, kept)
    notes = _notes(models)
    write_text(folder / "summary.md", markdown(columns, rows, notes))
    draw(models, folder / "summary.png")
    context.progress.table(f"fine-tuned: {SPREAD}", columns, rows)
    for note in notes:
        context.progress.message(note)


def _scores_of(
    model: Mapping[str, Any], tasks: Mapping[str, Sequence[Mapping[str, Any]]], name: str
) -> ModelScores | None:
    if not tasks:
        return None
    scores = {task: TaskScores.of(results) for task, results in tasks.items()}
    order = [*(kind for kind in TASKS if kind in scores), *sorted(set(scores) - set(TASKS))]
    return ModelScores(
        name=name,
        path=model["path"],
        parameters=max(result["parameters"] for results in tasks.values() for result in results),
        weights=model["weights"],
        tasks={task: scores[task] for task in order},
    )


def table(models: Sequence[ModelScores], kept: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a task each, its figures below it where it has several, and the means; beside each model its retention."""
    columns = [""]
    for model in models:
        columns += [model.name, *(["of the teacher"] if model.name in kept else [])]
    names = list(dict.fromkeys(name for model in models for name in model.tasks))
    rows: list[list[str]] = []
    for name in names:
        tasks = {model.name: model.tasks[name] for model in models if name in model.tasks}
        figures = list(next(iter(tasks.values())).figures)
        label = f"{name}, {TASK_FIGURES[figures[0]]}" if len(figures) == 1 else name
        rows.append(_row(label, models, kept, {model: cell(task.scores) for model, task in tasks.items()}, key=name))
        if len(figures) > 1:
            rows += [
                _row(
                    f"- {TASK_FIGURES[figure]}",
                    models,
                    kept,
                    {model: cell(task.figures[figure]) for model, task in tasks.items()},
                )
                for figure in figures
            ]
        rows += [_row(label, models, kept, cells) for label, cells in _beside(tasks).items()]
    in_glue = [name for name in names if name in IN_MACRO]
    means = {"macro": f"GLUE, mean of {len(in_glue)} of {len(IN_MACRO)}"} if in_glue else {}
    if "WNLI" in in_glue and len(in_glue) > 1:
        means["macro_without_wnli"] = "GLUE without WNLI"
    if len(in_glue) < len(names) and len(names) > 1:
        means["all"] = "all tasks"
    for key, label in means.items():
        whole = {model.name: _mean_cell(model, key, names) for model in models if key in model.means}
        rows.append(_row(label, models, kept, whole, key=key))
    return columns, rows


def _beside(tasks: Mapping[str, TaskScores]) -> dict[str, dict[str, str]]:
    """Label -> model -> cell of what was asked beside the evaluation of a task."""
    rows: dict[str, dict[str, str]] = {}
    for model, task in tasks.items():
        if task.validation:
            rows.setdefault("- validation", {})[model] = cell(task.validation)
        for other, asked in task.zero_shot.items():
            for figure, values in asked.figures.items():
                label = f"- zero-shot on {other}, {TASK_FIGURES[figure]}"
                rows.setdefault(label, {})[model] = f"{cell(values)} ({percent(asked.majority[figure])})"
    return rows


def _row(
    label: str,
    models: Sequence[ModelScores],
    kept: Mapping[str, Mapping[str, float]],
    cells: Mapping[str, str],
    key: str | None = None,
) -> list[str]:
    row = [label]
    for model in models:
        row.append(cells.get(model.name, "-"))
        if model.name in kept:
            share = kept[model.name].get(key) if key is not None else None
            row.append("" if key is None else "-" if share is None else f"{share:.1%}")
    return row


def _mean_cell(model: ModelScores, key: str, names: Sequence[str]) -> str:
    """The mean, and over how many tasks it is where others have more."""
    wanted = [
        name
        for name in names
        if key == "all" or (name in IN_MACRO and not (key == "macro_without_wnli" and name == "WNLI"))
    ]
    there = [name for name in wanted if name in model.tasks]
    return percent(model.means[key]) + ("" if len(there) == len(wanted) else f" (of {len(there)})")


def cell(values: Sequence[float]) -> str:
    """`87.5 ± 0.4`: see `SPREAD`."""
    spread = f" ± {100 * (max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
    return percent(median(values)) + spread


def percent(value: float) -> str:
    """A fraction as it is usual for these tasks, without the sign."""
    return f"{100 * value:.1f}"


def _notes(models: Sequence[ModelScores]) -> list[str]:
    """What a reader of the table has to know."""
    notes = []
    seeds: dict[tuple[int, ...], list[str]] = {}
    for model in models:
        for name, task in model.tasks.items():
            seeds.setdefault(tuple(task.seeds), []).append(f"{model.name} on {name}")
    if len(seeds) == 1:
        notes.append(f"seeds {', '.join(map(str, next(iter(seeds))))} for all")
    else:
        most = max(seeds, key=lambda some: len(seeds[some]))
        notes += [
            f"seeds {', '.join(map(str, some))}: " + ("all others" if some == most else ", ".join(where))
            for some, where in sorted(seeds.items(), key=lambda item: item[0] == most)
        ]
    if any(task.zero_shot for model in models for task in model.tasks.values()):
        notes.append(
            "zero-shot: answers to a task that was not learned, in brackets what always saying its most frequent class gives"
        )
    teacher = next((model for model in models if model.name == TEACHER), None)
    if teacher is not None:
        notes += [
            f"{model.name} and the teacher were scored on different examples of {name}: no share is given"
            for model in models
            for name, task in model.tasks.items()
            if name in teacher.tasks and not _same(teacher.tasks[name], task)
        ]
    return notes


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The table in Markdown, and below it what the numbers are."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    drawn = "".join(f"| {' | '.join(entry.replace('|', chr(92) + '|') for entry in line)} |\n" for line in lines)
    return f"{drawn}\n{SPREAD[0].upper()}{SPREAD[1:]}; {'; '.join(notes)}.\n"
