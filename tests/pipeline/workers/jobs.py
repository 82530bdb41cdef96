"""Jobs without tensors, for processes that start quickly. Items are numbers; what happens to one is in its name."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.errors import Interrupted
from stages.sharing import Place
from storage import InvalidTargetsError


@dataclass(frozen=True)
class Numbers:
    """Squares numbers, and leaves a file for each beginning, start and end of one in `folder`."""

    folder: Path
    poison: frozenset[int] = frozenset()
    """Kill their process, always."""
    deadly_once: frozenset[int] = frozenset()
    """Kill their process the first time."""
    invalid: frozenset[int] = frozenset()
    slow: frozenset[int] = frozenset()
    """Never come to an end, unless asked to stop."""
    stuck: frozenset[int] = frozenset()
    """Come to an end when the file `enough` is there, whoever asks to stop."""
    hung: frozenset[int] = frozenset()
    """Never come to an end, and hold up the whole process."""
    at_once: int = 2

    @contextmanager
    def begin(self, place: Place) -> Iterator[Callable[[int], tuple[int, int]]]:
        self._note("begun", os.getpid())

        def do(number: int) -> tuple[int, int]:
            self._note("started", number)
            once = self.folder / f"died-{number}"
            if number in self.poison or (number in self.deadly_once and not once.exists()):
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.invalid:
                raise InvalidTargetsError(f"{number} is not fit to be stored")
            while number in self.slow:
                if place.should_stop():
                    raise Interrupted("dropped")
                time.sleep(0.01)
            while number in self.stuck and not (self.folder / "enough").exists():
                time.sleep(0.01)
            if number in self.hung:
                ctypes.PyDLL(None).pause()  # a PyDLL keeps the interpreter's lock
            time.sleep(0.02)
            return number * number, os.getpid()

        yield do
        self._note("ended", os.getpid())

    def _note(self, what: str, name: int) -> None:
        with (self.folder / what).open("a") as file:
            file.write(f"{name}\n")

    def noted(self, what: str) -> list[int]:
        file = self.folder / what
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []
