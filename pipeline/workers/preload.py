"""Settings of a local worker process, made by Dask as the process starts (`--preload`)."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.workers.logs import logged_to

LOG_FILE = "TEACHER_CACHE_WORKERS_LOG"
"""Environment variable: where the log of the worker processes goes."""

_SETTINGS = ExitStack()


def dask_setup(_worker: Any) -> None:
    """Leave it to the coordinator to stop: Ctrl-C in a terminal, and SIGTERM of a batch system, reach all processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if LOG_FILE in os.environ:
        _SETTINGS.enter_context(logged_to(Path(os.environ[LOG_FILE])))


def dask_teardown(_worker: Any) -> None:
    """Close the log."""
    _SETTINGS.close()
