"""By how much the runs of a comparison differ from its first, the recipe as it stands: an ablation, where they leave parts out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from stages.figures import Objective, closest
from stages.report_page import published
from stages.report_page.closeness import MEASURES, Run
from stages.report_page.dots import Line, draw_dots
from stages.report_page.drawing import SECOND, Plot
from stages.report_page.parts import Part
from stages.report_page.tables import Cell, Column, Table
from stages.report_page.units import number, points, signed, spread, unbroken


def variation_part(runs: Sequence[Run], folder: Path, objective: Objective, against: str | None = None) -> Part | None:
    """The differences as a table and, where runs were fine-tuned, as a plot; None where there are not two trained runs.

    They are from the run `against`, `compare.against` of the comparison; from the first one where none of its runs is called so.
    """
    trained = [run for run in runs if run.trained]
    if len(trained) < 2:
        return None
    first = next((run for run in trained if run.name == against), trained[0])
    others = [run for run in trained if run is not first]
    return Part(notes=[], tables=[_table(first, others, objective)], plots=_plots(first, others, folder))


def _differences(run: Run, first: Run) -> dict[str, float]:
    """Of the mean score of each task on which both were scored on the same examples, as fractions of 1."""
    return {
        task: mean(scores) - mean(first.tasks[task])
        for task, scores in run.tasks.items()
        if task in first.tasks and run.examples.get(task) == first.examples.get(task)
    }


def _table(first: Run, others: Sequence[Run], objective: Objective) -> Table:
    """A row for each run: KL and loss, the mean over the tasks and each task; the first run has its figures, the others differences."""
    kl, _, loss = closest(objective)
    measures = [measure for measure in MEASURES[objective] if measure.key in (kl, loss)]
    tasks = list(first.tasks)
    rows = [
        [
            Cell(first.name),
            *(Cell(number(mean(first.values[one.key])) if first.values.get(one.key) else "–") for one in measures),
            *([Cell(points(mean(mean(scores) for scores in first.tasks.values())))] if tasks else []),
            *(Cell(spread(first.tasks[task], mean)) for task in tasks),
        ]
    ]
    for run in others:
        row = [Cell(run.name)]
        for one in measures:
            values, base = run.values.get(one.key), first.values.get(one.key)
            row.append(
                Cell(signed(mean(values) - mean(base), number), detail=number(mean(values)))
                if values and base
                else Cell("–")
            )
        if tasks:
            differences = _differences(run, first)
            whole = len(differences) == len(tasks)
            row.append(Cell(signed(mean(differences.values()), _hundredths) if whole else "–"))
            row += [
                Cell(signed(differences[task], points), detail=spread(run.tasks[task], mean))
                if task in differences
                else Cell("–", detail=spread(run.tasks[task], mean) if task in run.tasks else "")
                for task in tasks
            ]
        rows.append(row)
    if tasks:
        rows += [
            [
                Cell(name, detail="DistilBERT paper"),
                *(Cell("–") for _ in measures),
                Cell(signed(difference / 100, _hundredths), detail="GLUE, 9 tasks"),
                *(Cell("–") for _ in tasks),
            ]
            for name, difference in published.ABLATION.items()
        ]
    scores = (
        ". Scores of fine-tuned students in %: the mean over the students of a run, each with the median over the seeds of its "
        "fine-tuning; no difference stands where other examples were scored. Below them the ablation of the DistilBERT paper"
        if tasks
        else ""
    )
    return Table(
        name="variation",
        caption=f"What each run changes: its difference from “{first.name}”, whose own figures stand in the first row{scores}.",
        columns=[
            Column(""),
            *(Column(one.label, one.unit, "↓ is better") for one in measures),
            *([Column("Tasks", f"mean of {len(tasks)}", "↑ is better")] if tasks else []),
            *(Column(unbroken(task), "score", "↑ is better") for task in tasks),
        ],
        rows=rows,
    )


def _plots(first: Run, others: Sequence[Run], folder: Path) -> list[Plot]:
    """A dot per task and run, on one axis with the paper's macro scores; none where nothing was fine-tuned."""
    lines = [
        Line(
            label=run.name,
            values=[100 * difference for difference in differences.values()],
            shown=signed(mean(differences.values()), _hundredths),
        )
        for run in others
        if (differences := _differences(run, first))
    ]
    if not lines:
        return []
    lines += [
        Line(
            label=f"{name} (DistilBERT paper)",
            values=[difference],
            shown=signed(difference / 100, _hundredths),
            colour=SECOND,
        )
        for name, difference in published.ABLATION.items()
    ]
    return [
        draw_dots(
            lines,
            folder,
            name="variation-tasks",
            title="Scores on downstream tasks, difference",
            unit=f"points, from “{first.name}”",
            caption=(
                "Blue: one dot per task and run, the mean at the right; strokes: no difference. Orange: GLUE's macro score in "
                f"the ablation of the DistilBERT paper ({published.SOURCE}). Further left is a greater loss."
            ),
            mark=0.0,
        )
    ]


def _hundredths(share: float) -> str:
    return f"{100 * share:.2f}"
