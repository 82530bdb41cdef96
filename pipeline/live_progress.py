"""The live line of a terminal, drawn by rich."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.progress import LineReporter, shortened, with_figures

WIDE = 100
"""Columns of a terminal that has room for a long bar."""
LONG_BAR, SHORT_BAR = 16, 10
LEAST_NAME = 8
"""Columns of a task's name that are worth more than its rate."""


class LiveReporter(LineReporter):
    """One line that is redrawn while a task runs and becomes a plain line when it is over.

    It never breaks: where the terminal is narrow, figures go first, then the end of the task's name, then the rate.
    """

    def __init__(self, stage: str, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        super().__init__(stage, write=lambda line: self._console.print(Text(line)), clock=clock)
        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            transient=True,
            redirect_stdout=False,  # tables belong on stdout
            refresh_per_second=5,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        super().__exit__(kind, error, trace)

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start a task; the one before is over."""
        super().begin(task, total, unit, done)
        self._live.start()

    @property
    def width(self) -> int:
        return self._console.width

    def _finish(self) -> None:
        self._live.stop()  # takes the live line away, so that what follows starts on a line of its own
        super()._finish()

    def _draw(self) -> Table:
        """Name, bar, units done, rate, time left, figures. The thread that draws calls this, between two advances too."""
        line = Table.grid(padding=(0, 1))
        if self._task is None:
            return line
        task, bar_width = self._task, LONG_BAR if self.width >= WIDE else SHORT_BAR
        room = self.width - bar_width - 2
        now = self._clock()
        amount = task.amount(now)
        if room - len(amount) < min(len(task.name), LEAST_NAME):
            amount = task.amount(now, with_rate=False)
        name = shortened(task.name, room - len(amount))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_row(
            Text(name),
            ProgressBar(total=task.total or None, completed=task.done, width=bar_width),
            Text(with_figures(amount, task.figures, room - len(name))),
        )
        return line
