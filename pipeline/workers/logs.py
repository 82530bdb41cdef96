"""Where Dask's own log goes: to a file, as its lines would tear the progress on the terminal apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOGGERS = ("distributed", "tornado", "asyncio")


@contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Send the log of Dask, and of what it is built on, to the end of `file`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s: %(message)s"))
    names = {*_LOGGERS, *(name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LOGGERS)}
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = ([handler], False) if logger.name in _LOGGERS else ([], True)
    try:
        yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        handler.close()
