"""The log of a command: what the terminal shows, without bars and with times, kept in `runs/logs` of the project.

It is nobody's input: no output of DVC, and part of no identity.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.progress import LineReporter, PlainReporter, Reporter, duration, with_figures
from stages.context import Figure

LIMIT_BYTES = 1_000_000
"""A log that has grown to this becomes `.log.1`, in the place of the one before: each command has at most twice that."""


class LogFile:
    """Lines appended to a file, each written at once: a process may be killed at any moment, or have others beside it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.failure: OSError | None = None
        """Why no more lines are written: a log that cannot be kept ends no run."""

    def write(self, line: str) -> None:
        """Append one line, the time (UTC) before it."""
        if self.failure is not None:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.is_file() and self.file.stat().st_size >= LIMIT_BYTES:
                self.file.replace(f"{self.file}.1")
            with self.file.open("a", encoding="utf-8") as log:
                log.write(f"{now} {line}\n")
        except OSError as error:
            self.failure = error


class LoggedReporter:
    """Shows what `shown` shows, and writes it to the log."""

    def __init__(self, shown: LineReporter, log: LogFile, stage: str) -> None:
        self._shown, self._log, self._stage = shown, log, stage
        self._logged = PlainReporter(stage, write=log.write)
        self._logged.results = _LoggedResults(stage, log)
        self._both: tuple[Reporter, Reporter] = (shown, self._logged)
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        self._log.write(f"{self._stage}: begins")
        for reporter in self._both:
            reporter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reporter in self._both:
            reporter.__exit__(kind, error, trace)
        how = "done" if error is None else f"ended by {type(error).__name__}: {error}"
        self._log.write(f"{self._stage}: {how}, after {duration(time.monotonic() - self._begun)}")
        if self._log.failure is not None:
            self._shown.message(f"no log was kept in {self._log.file}: {self._log.failure}")

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        """Start a task; the one before is over."""
        for reporter in self._both:
            reporter.begin(task, total, unit, done)

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Count."""
        for reporter in self._both:
            reporter.advance(amount, **figures)

    def message(self, text: str) -> None:
        """Write one line."""
        for reporter in self._both:
            reporter.message(text)

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Show names and values."""
        for reporter in self._both:
            reporter.summary(title, rows)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Show results side by side."""
        for reporter in self._both:
            reporter.table(title, columns, rows)


class _LoggedResults:
    """Tables in a log: a line for each of their rows."""

    def __init__(self, stage: str, log: LogFile) -> None:
        self._stage, self._log = stage, log

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """One line with all of it."""
        self._log.write(with_figures(f"{self._stage}: {title}", rows))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """A line a row, with the names of its figures."""
        for name, *figures in rows:
            self._log.write(
                with_figures(f"{self._stage}: {title}: {name}", dict(zip(columns[1:], figures, strict=True)))
            )

    def close(self) -> None:
        """All is written."""
