"""What a stage is told about the place it runs in. A stage knows nothing else of its surroundings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stages.errors import Interrupted

Figure = str | int | float


class Progress(Protocol):
    """Where a stage reports what it does. The terminal, a log file and a test implement it."""

    def begin(self, task: str, total: int | None, unit: str) -> None:
        """Start a task of `total` units (None: unknown)."""

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """`amount` more units are done; `figures` are shown beside the bar (loss, bytes)."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """The result of the stage: a small table of names and values."""


class Silent:
    """A `Progress` that shows nothing."""

    def begin(self, task: str, total: int | None, unit: str) -> None:
        """Show nothing."""

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Artefacts:
    """Where each stage's files lie, below the project folder. The names are the ones in dvc.yaml."""

    project: Path

    @property
    def documents(self) -> Path:
        return self.project / "data" / "documents"

    @property
    def tokens(self) -> Path:
        return self.project / "data" / "tokens"

    @property
    def teacher(self) -> Path:
        return self.project / "models" / "teacher"

    def student_init(self, name: str) -> Path:
        """Folder of the initial weights of the student called `name`."""
        return self.project / "models" / "student-init" / name

    @property
    def student(self) -> Path:
        return self.project / "models" / "student"

    @property
    def cache_work(self) -> Path:
        return self.project / ".cache-work"

    @property
    def cache(self) -> Path:
        return self.project / "cache" / "current"

    @property
    def cache_run(self) -> Path:
        return self.project / "cache" / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.project / "checkpoints"

    @property
    def runs(self) -> Path:
        return self.project / "runs"


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Context:
    """The place a stage runs in: folders, device, rank, and the way to report and to be stopped."""

    artefacts: Artefacts
    device: str = "cpu"
    """A torch device: `cpu`, `cuda`, `cuda:1`."""
    threads: int = 1
    """Threads of this process for tensor work; changing it may change the last bits of a result."""
    rank: int = 0
    world_size: int = 1
    should_stop: Callable[[], bool] = never
    progress: Progress = field(default_factory=Silent)

    def stop_if_asked(self, kept: str) -> None:
        """Raise `Interrupted` if a stop was asked for; `kept` says what is safe on disk."""
        if self.should_stop():
            raise Interrupted(f"stopped as asked; {kept}; run the same command again to resume")
