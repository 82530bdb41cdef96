"""The live line of a terminal, drawn by rich."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.progress import LineReporter, show
from stages.context import Figure

WIDTH_FOR_FIGURES = 100
"""Columns of a terminal below which figures (loss and the like) would squeeze the counts out of the line."""


class LiveReporter(LineReporter):
    """One line that is redrawn while a task runs and becomes a plain line when it is over."""

    def __init__(self, stage: str, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False)
        super().__init__(stage, write=lambda line: console.print(Text(line)))
        self._row: TaskID | None = None
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(),
        ]
        if console.width >= WIDTH_FOR_FIGURES:
            columns.append(TextColumn("{task.fields[figures]}", markup=False))
        # The summary belongs on stdout, which rich would otherwise redirect.
        self._bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, refresh_per_second=5)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._bar.stop()

    def begin(self, task: str, total: int | None, unit: str) -> None:
        """Start a task; the one before is over."""
        super().begin(task, total, unit)
        self._row = self._bar.add_task(f"{self._stage}: {task}", total=total, amount="", figures="")
        self._bar.start()

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count; the line is redrawn at its next refresh."""
        if self._task is None or self._row is None:
            return
        self._task.advance(amount, figures)
        of = f" of {self._task.total:,}" if self._task.total else ""
        self._bar.update(
            self._row,
            completed=self._task.done,
            amount=f"{self._task.done:,}{of} {self._task.unit}",
            figures=", ".join(f"{name} {show(value)}" for name, value in self._task.figures.items()),
        )

    def _finish(self) -> None:
        if self._row is not None:
            self._bar.stop()  # takes the live line away, so that what follows starts on a line of its own
            self._bar.remove_task(self._row)
            self._row = None
        super()._finish()
