"""The scores of all models on all tasks, as a picture: a dot per seed, a line at the median."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.report_page.drawing import FIRST, INK, SECOND, axes, style

if TYPE_CHECKING:
    from stages.finetuning.summary import ModelScores

COLOURS = (SECOND, FIRST, "#007a55", "#8a4f7d", "#6b6b00", INK)
"""Of the models in their order, the teacher's first; they repeat from the seventh on."""
_ROW_INCHES = 0.16
_AXIS = "score, %; a dot per seed, a line at the median"


def draw(models: Sequence[ModelScores], file: Path) -> None:
    """Write a PNG (150 dpi): a row for each task and, in it, a line of dots for each model."""
    names = list(dict.fromkeys(name for model in models for name in model.tasks))
    step = len(models) + 1  # rows, one of them empty
    with style():
        figure, panel = axes(
            "Scores of the fine-tuned models",
            "score, %; a dot per seed, a line at the median",
            "",
            height=1.1 + _ROW_INCHES * step * len(names),
        )
        for number, model in enumerate(models):
            colour = COLOURS[number % len(COLOURS)]
            for place, name in enumerate(names):
                task = model.tasks.get(name)
                if task is None:
                    continue
                y = -(place * step + number)
                panel.scatter(
                    [100 * score for score in task.scores],
                    [y] * len(task.scores),
                    s=16,
                    color=colour,
                    linewidths=0,
                    alpha=0.7,
                )
                panel.vlines(100 * task.score, y - 0.45, y + 0.45, color=colour, linewidth=1.5)
            panel.scatter([], [], s=16, color=colour, label=model.name)
        middle = (len(models) - 1) / 2
        panel.set_yticks([-(place * step + middle) for place in range(len(names))], names, parse_math=False)
        panel.set_ylim(-(step * len(names)) + 0.5, 1)
        panel.grid(visible=True, axis="x")
        figure.legend(loc="outside lower center", ncols=min(3, len(models)), frameon=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150, metadata={"Software": None})
