"""Plots of dots: a line for each student, engine or run, and on it a dot for each seed, or a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.figures import Objective, closest
from stages.report_page.closeness import Run
from stages.report_page.drawing import FIRST, INK, LOG_RANGE, Plot, axes, finish, logarithmic, style
from stages.report_page.units import number

_MARGIN = 0.06
"""Of the axis, beside the outermost dots."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a plot."""

    label: str
    values: Sequence[float]
    """Where its dots are."""
    shown: str
    """What stands at its right end."""
    span: tuple[float, float] | None = None
    """A bar from here to there."""
    colour: str = FIRST


def comparison_plots(runs: Sequence[Run], folder: Path, objective: Objective) -> list[Plot]:
    """KL and agreement of every student of the comparison; the teacher is 0 and 100 % by definition and left out."""
    students = [run for run in runs if run.name != "teacher"]
    drawn = []
    kl, agreement, _ = closest(objective)
    of = "masked tokens" if objective == "masked" else "all positions"
    for key, name, title, unit, better in (
        (kl, "comparison-kl", f"KL to the teacher, {of}", "nats", "further left"),
        (agreement, "comparison-agreement", f"Top-1 agreement, {of}", "%", "further right"),
    ):
        scale = 100.0 if unit == "%" else 1.0
        shown = [(run.name, [scale * value for value in run.values[key]]) for run in students if run.values.get(key)]
        if shown:
            everything = [value for _, values in shown for value in values]
            drawn.append(
                draw_dots(
                    [Line(label=name, values=values, shown=number(_mean(values), 3)) for name, values in shown],
                    folder,
                    name=name,
                    title=title,
                    unit=unit,
                    limits=(0, 100 if unit == "%" else 1.08 * max(everything) or 1),
                    log=unit != "%" and min(everything) > 0 and max(everything) > LOG_RANGE * min(everything),
                    caption=f"One dot per seed and student, the mean at the right; {better} is closer to the teacher.",
                )
            )
    return drawn


def draw_dots(
    lines: Sequence[Line],
    folder: Path,
    *,
    name: str,
    title: str,
    unit: str,
    caption: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    mark: float | None = None,
) -> Plot:
    """A plot of these lines, from the top down.

    `limits` of the axis: None gives it a margin beside what is drawn; a logarithmic one has its own. `mark`: a value that
    the others are measured by, a stroke across each line.
    """
    with style():
        figure, panel = axes(title, f"{unit}, logarithmic" if log else unit, "", height=0.9 + 0.42 * len(lines))
        panel.title.set_parse_math(False)
        for place, line in enumerate(lines):
            y = -place
            panel.axhline(y, color=line.colour, alpha=0.25, linewidth=1)
            if line.span is not None:
                panel.hlines(y, *line.span, color=line.colour, alpha=0.55, linewidth=3)
            panel.scatter(
                line.values, [y] * len(line.values), s=26, color=line.colour, alpha=0.85, linewidths=0, zorder=3
            )
            for text, x, side in ((line.label, 0.0, "left"), (line.shown, 1.0, "right")):
                panel.annotate(
                    text,
                    (x, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 5),
                    textcoords="offset points",
                    ha=side,
                    parse_math=False,
                )
        everything = [*(value for line in lines for value in (*line.values, *(line.span or ())))]
        if mark is not None:
            everything.append(mark)
            for place in range(len(lines)):  # short: it must not run through the labels
                panel.vlines(mark, -place - 0.22, -place + 0.06, color=INK, linewidth=1.2)
        if log:
            logarithmic(panel, "x", everything)
        else:
            panel.set_xlim(*(limits or _around(everything)))
        panel.set_ylim(-len(lines) + 0.6, 0.8)
        panel.set_yticks([])
        panel.spines["left"].set_visible(False)
        panel.grid(visible=True, axis="x")
        return finish(figure, folder, name=name, title=title, caption=caption)


def _around(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = _MARGIN * ((high - low) or 1)
    return low - margin, high + margin


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
