"""How a stage's progress is shown: a live line on a terminal, sparse plain lines elsewhere, nothing on other ranks.

Progress goes to stderr and tables to stdout, so that `pipeline evaluate > figures.txt` keeps the figures only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from stages.context import Figure, Progress, Silent

if TYPE_CHECKING:
    from pipeline.logged import LogFile

LINE_SECONDS = 10.0
"""No two plain lines about the same task come closer than this."""
SIGN_OF_LIFE_SECONDS = 60.0
"""A plain line comes at least this often; in between, one per tenth of the task."""
RATE_SECONDS = 3.0
"""A task shorter than this says nothing about how fast the machine is."""
WARM_UP = 0.1
"""How long after the first unit others count as first ones too: this share of the time that it took."""


class Reporter(Progress, Protocol):
    """A `Progress` that is opened before the stage and closed after it, whatever happened."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Results(Protocol):
    """Where the tables at the end of a stage go."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None: ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None: ...

    def close(self) -> None:
        """The stage is done, without an error."""


def make_reporter(stage: str, rank: int = 0, *, as_json: bool = False, log: LogFile | None = None) -> Reporter:
    """The reporter that suits where stderr goes; `as_json`: its tables are one JSON object. What it says is in the `log` too."""
    if rank != 0:
        return SilentReporter()
    shown: LineReporter
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":  # an editor's shell cannot redraw a line
        from pipeline.live_progress import LiveReporter

        shown = LiveReporter(stage)
    else:
        shown = PlainReporter(stage)
    if as_json:
        from pipeline.json_results import JsonResults

        shown.results = JsonResults(stage)
    if log is None:
        return shown
    from pipeline.logged import LoggedReporter

    return LoggedReporter(shown, log, stage)


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
    """One task of a stage, and how far it is. Times are seconds of one clock."""

    name: str
    total: int | None
    unit: str
    """Plural."""
    started: float
    before: int = 0
    """Units that an earlier run had done; they say nothing about how fast this one is."""
    made: int = 0
    advanced: float = 0.0
    """When a unit was last done."""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    _first: float | None = None
    """When the first unit was done."""
    _warm: tuple[float, int] = (0.0, 0)
    """When the last of the first units was done, and how many they are."""

    @property
    def done(self) -> int:
        """Units done by now, in all runs."""
        return self.before + self.made

    def advance(self, amount: int, figures: Mapping[str, Figure], now: float) -> None:
        """Count `amount` more units and remember the newest figures."""
        if amount:
            self._first = now if self._first is None else self._first
            if now - self._first <= WARM_UP * (self._first - self.started):
                self._warm = now, self.made + amount
            self.made, self.advanced = self.made + amount, now  # last: the thread that draws may look in between
        self.figures = {**self.figures, **figures}  # a new one: the thread that draws may be reading the old one

    def _pace(self) -> tuple[int, float]:
        """Units, and the seconds they took: how fast it goes, where a unit is done."""
        # Before the first unit a teacher is loaded and a model compiled, which happens once; so what counts is what came
        # after it. Workers bring their first shards nearly together: had it counted from the first of them, the others
        # would have taken no time. Until there is enough after them, all of it is a better guess than nearly nothing.
        assert self._first is not None
        warmed_up, of_first = self._warm
        made, seconds = self.made - of_first, self.advanced - warmed_up
        if made > 0 and seconds > WARM_UP * (self._first - self.started):
            return made, seconds
        return self.made, self.advanced - self.started

    def amount(self, now: float, *, with_rate: bool = True) -> str:
        """Units done, how fast, and time left; `12 of 30 shards, 3.2 shards/s, 4.2 s left`."""
        if self.total:
            amount = f"{self.done:,} of {counted(self.total, self.unit)}"
        else:
            amount = f"{counted(self.done, self.unit)} in {duration(now - self.started)}"
        if not self.made or (self.total and self.done >= self.total):
            return amount
        made, seconds = self._pace()
        if with_rate and self.advanced - self.started >= RATE_SECONDS:
            amount += f", {rate(made, self.unit, seconds)}"
        if not self.total:
            return amount
        expected = seconds / made * (self.total - self.done)
        return f"{amount}, {duration(max(0.0, expected - (now - self.advanced)))} left"

    def running(self, now: float) -> str:
        """One line while it runs: share, units, rate, time left, figures."""
        amount = f"{self.done / self.total:.0%} ({self.amount(now)})" if self.total else self.amount(now)
        return with_figures(f"{self.name}: {amount}", self.figures)

    def finished(self, now: float, width: int | None = None) -> str:
        """One line once it is over: what was done in what time, how fast, and the figures that `width` has room for."""
        seconds = now - self.started
        earlier = f"{counted(self.done, self.unit)}, the last {self.made:,}" if self.before else None
        amount = f"{earlier or counted(self.done, self.unit)} in {duration(seconds)}"
        if seconds >= RATE_SECONDS and self.made:
            amount += f" ({rate(self.made, self.unit, seconds)})"
        name = self.name if width is None else shortened(self.name, width - len(amount) - 2)
        return with_figures(f"{name}: {amount}", self.figures, width)


class PrintedResults:
    """On stdout, as tables."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Print names and values."""
        from pipeline.summary import print_summary

        print_summary(title, rows)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Print results side by side."""
        from pipeline.summary import print_table

        print_table(title, columns, rows)

    def close(self) -> None:
        """All is printed."""


class LineReporter:
    """One line when a task is over, one per message, and the tables: what every shown progress has."""

    def __init__(
        self, stage: str, write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage = stage
        self._write = write or _to_stderr
        self._clock = clock
        self._task: Task | None = None
        self.results: Results = PrintedResults()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            self.results.close()

    @property
    def width(self) -> int | None:
        """Columns that a line about a task may take; None: any number."""
        return None

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start a task; the one before is over."""
        self._finish()
        self._task = Task(task, total, unit, self._clock(), before=done)

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count."""
        if self._task is not None:
            self._task.advance(amount, figures, self._clock())

    def message(self, text: str) -> None:
        """Write one line, with the stage's name before it, below that of a task that is done."""
        if self._task is not None and self._task.total and self._task.done >= self._task.total:
            self._finish()
        self._line(text)

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Show names and values where results go: on stdout."""
        self._finish()
        self.results.summary(title, rows)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Show results side by side, there too."""
        self._finish()
        self.results.table(title, columns, rows)

    def _finish(self) -> None:
        if self._task is not None:
            width = None if self.width is None else self.width - len(f"{self._stage}: ")
            self._line(self._task.finished(self._clock(), width))
            self._task = None

    def _line(self, text: str) -> None:
        self._write(f"{self._stage}: {text}")


class PlainReporter(LineReporter):
    """For logs: now and then a line while a task runs."""

    _line_at = 0.0
    _line_done = 0

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start a task; the one before is over."""
        super().begin(task, total, unit, done)
        self._line_at, self._line_done = self._clock(), done

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count, and write a line where one is due."""
        super().advance(amount, **figures)
        if self._task is None:
            return
        now, total = self._clock(), self._task.total
        waited, moved = now - self._line_at, self._task.done - self._line_done
        if waited >= SIGN_OF_LIFE_SECONDS or (waited >= LINE_SECONDS and total and moved >= total / 10):
            self._line_at, self._line_done = now, self._task.done
            self._line(self._task.running(now))


def show(value: Figure) -> str:
    """A figure for people: thousands separated, floats to four significant digits."""
    match value:
        case bool() | str():
            return str(value)
        case float() if abs(value) < 1000:
            return f"{value:.4g}"
        case _:
            return f"{value:,.0f}"


def counted(number: int, unit: str) -> str:
    """`1 step`, `2,000 steps`; `unit` is the plural."""
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def rate(number: int, unit: str, seconds: float) -> str:
    """`6,120 tokens/s`, `3.2 steps/s`; `4.2 s per shard` where one takes longer than a second."""
    if number < seconds:
        return f"{duration(seconds / number)} per {unit.removesuffix('s')}"
    return f"{number / seconds:,.{0 if number >= 10 * seconds else 1}f} {unit}/s"


def with_figures(line: str, figures: Mapping[str, Figure], width: int | None = None) -> str:
    """The line and its figures after it, as many as fit into `width`."""
    for name, value in figures.items():
        longer = f"{line}, {name} {show(value)}"
        if width is not None and len(longer) > width:
            break
        line = longer
    return line


def shortened(text: str, width: int) -> str:
    """The text, its end replaced by dots where it is longer than `width`."""
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def duration(seconds: float) -> str:
    """`4.2 s`, `4 min 51 s`, `3 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
