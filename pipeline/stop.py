"""SIGTERM and SIGINT: the first asks the stage to stop at its next safe point, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h"
_PASSED_ON_S = 10.0
"""A launcher passes a signal on that a batch system may have sent to its processes too: so long after it, it is the same one."""


class StopRequest:
    """Remembers a signal until the stage asks for it. Its `with` block, in the main thread, holds the handlers."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._signalled_at = 0.0
        self._speaks, self._launched = True, False
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
            # torchrun ends the processes that are left when one has ended; this one is about to, with a code of its own.
            signal.signal(number, signal.SIG_IGN if self._launched else handler)  # type: ignore[arg-type]  # it returned it

    def as_one_of_several(self, *, speaks: bool) -> None:
        """This process is one of a launch, and `speaks` for all of them or leaves that to another."""
        self._speaks, self._launched = speaks, True

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
            self._signal, self._signalled_at = number, time.monotonic()
            if self._speaks:
                once_more = b"" if self._launched else b"; once more stops at once"
                _say(b"\nstopping at the next safe point" + once_more + b"\n")
        elif not self._launched or time.monotonic() - self._signalled_at > _PASSED_ON_S:
            if os.isatty(2):
                _say(b"\n" + _SHOW_CURSOR)  # the prompt starts on a line of its own
            os._exit(128 + number)


def _say(text: bytes) -> None:
    # Not print: a signal may arrive in the middle of one, and buffered streams are not reentrant.
    os.write(2, text)
