"""SIGTERM and SIGINT: the first asks the stage to stop at its next safe point, the second ends the process at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """Remembers a signal until the stage asks for it. Its `with` block, in the main thread, holds the handlers."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._pid = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned, it accepts

    def requested(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """128 + signal, as a shell has it; 143 where another process of the run got the signal."""
        return 128 + (self._signal or signal.SIGTERM)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked worker inherits this handler; remembering would make it deaf to its parent's terminate().
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._signal is None:
            self._signal = number
            _say(b"\nstopping at the next safe point; once more stops at once\n")
        else:
            if os.isatty(2):
                _say(b"\n" + _SHOW_CURSOR)  # the prompt starts on a line of its own
            os._exit(128 + number)


def _say(text: bytes) -> None:
    # Not print: a signal may arrive in the middle of one, and buffered streams are not reentrant.
    os.write(2, text)
