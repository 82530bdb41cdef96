"""Work beside a stage's own, such as reading back what is there: a stop is seen in it, and it is shown where it lasts."""

from __future__ import annotations

import time
from collections.abc import Callable

from stages.context import Context

SHOWN_AFTER = 3.0
"""Seconds after which it is a task of the progress: what is over sooner is not worth a line."""


class LastingTask:
    """Called with the units of each piece that is done, in the thread of the stage. Until it lasts, nothing is shown."""

    def __init__(
        self,
        context: Context,
        task: str,
        total: int,
        unit: str,
        *,
        kept: str,
        after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`task`, `total` and `unit` as in `Progress.begin`; `kept` as in `Context.stop_if_asked`.

        It is shown from `after` seconds on (None: `SHOWN_AFTER`); 0: at once.
        """
        self._context, self._kept, self._clock = context, kept, clock
        self._task, self._total, self._unit = task, total, unit
        self._after = SHOWN_AFTER if after is None else after
        self._started, self._done, self._shown = clock(), 0, False
        self._show_once_due()

    def __call__(self, amount: int = 1) -> None:
        """`amount` more units are done. Raises `Interrupted` where a stop was asked for."""
        self._done += amount
        if self._shown:
            self._context.progress.advance(amount)
        else:
            self._show_once_due()
        self._context.stop_if_asked(self._kept)

    def _show_once_due(self) -> None:
        if self._clock() - self._started >= self._after:
            # What is done by now counts as if an earlier run had done it: not in the time that the task will show.
            self._context.progress.begin(self._task, self._total, self._unit, done=self._done)
            self._shown = True
