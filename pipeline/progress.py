"""How a stage's progress is shown: a live line on a terminal, sparse plain lines elsewhere, nothing on other ranks.

Progress goes to stderr and the summary to stdout, so that `pipeline evaluate > figures.txt` keeps the figures only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from stages.context import Figure, Progress, Silent

LINE_SECONDS = 10.0
"""No two plain lines about the same task come closer than this."""
SIGN_OF_LIFE_SECONDS = 60.0
"""A plain line comes at least this often; in between, one per tenth of the task."""


class Reporter(Progress, Protocol):
    """A `Progress` that is opened before the stage and closed after it, whatever happened."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_reporter(stage: str, rank: int = 0) -> Reporter:
    """The reporter that suits where stderr goes."""
    if rank != 0:
        return SilentReporter()
    if sys.stderr.isatty():
        from pipeline.live_progress import LiveReporter

        return LiveReporter(stage)
    return PlainReporter(stage)


class SilentReporter(Silent):
    """Shows nothing: one process of a run reports."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


@dataclass
class Task:
    """One task of a stage, and how far it is."""

    name: str
    total: int | None
    unit: str
    started: float
    done: int = 0
    figures: dict[str, Figure] = field(default_factory=dict)

    def advance(self, amount: int, figures: Mapping[str, Figure]) -> None:
        """Count `amount` more units and remember the newest figures."""
        self.done += amount
        self.figures.update(figures)

    def running(self, now: float) -> str:
        """One line while it runs: share, units, time left, figures."""
        seconds = now - self.started
        if not self.total:
            return self._line(f"{self.done:,} {self.unit} in {duration(seconds)}")
        left = f", {duration(seconds / self.done * (self.total - self.done))} left" if self.done else ""
        return self._line(f"{self.done / self.total:.0%} ({self.done:,} of {self.total:,} {self.unit}{left})")

    def finished(self, now: float) -> str:
        """One line once it is over: what was done in what time."""
        return self._line(f"{self.done:,} {self.unit} in {duration(now - self.started)}")

    def _line(self, amount: str) -> str:
        return ", ".join([f"{self.name}: {amount}", *(f"{k} {show(v)}" for k, v in self.figures.items())])


class LineReporter:
    """One line when a task is over, one per message, and the summary: what every shown progress has."""

    def __init__(
        self, stage: str, write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage = stage
        self._write = write or _to_stderr
        self._clock = clock
        self._task: Task | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def begin(self, task: str, total: int | None, unit: str) -> None:
        """Start a task; the one before is over."""
        self._finish()
        self._task = Task(task, total, unit, self._clock())

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count."""
        if self._task is not None:
            self._task.advance(amount, figures)

    def message(self, text: str) -> None:
        """Write one line, with the stage's name before it."""
        self._write(f"{self._stage}: {text}")

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Print the table to stdout."""
        self._finish()
        print_summary(title, rows)

    def _finish(self) -> None:
        if self._task is not None:
            self.message(self._task.finished(self._clock()))
            self._task = None


class PlainReporter(LineReporter):
    """For logs: now and then a line while a task runs."""

    _line_at = 0.0
    _line_done = 0

    def begin(self, task: str, total: int | None, unit: str) -> None:
        """Start a task; the one before is over."""
        super().begin(task, total, unit)
        self._line_at, self._line_done = self._clock(), 0

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count, and write a line where one is due."""
        super().advance(amount, **figures)
        if self._task is None:
            return
        now, total = self._clock(), self._task.total
        waited, moved = now - self._line_at, self._task.done - self._line_done
        if waited >= SIGN_OF_LIFE_SECONDS or (waited >= LINE_SECONDS and total and moved >= total / 10):
            self._line_at, self._line_done = now, self._task.done
            self.message(self._task.running(now))


def print_summary(title: str, rows: Mapping[str, Figure]) -> None:
    """Print names and values in two columns to stdout, below a title."""
    shown = {name: show(value) for name, value in rows.items()}
    names = max(map(len, shown), default=0)
    values = max(map(len, shown.values()), default=0)
    lines = [title, *(f"  {name:<{names}}  {value:>{values}}" for name, value in shown.items())]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def show(value: Figure) -> str:
    """A figure for people: thousands separated, floats to four significant digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """`4.2 s`, `4 min 51 s`, `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
