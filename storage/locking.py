"""The lock of a work folder: one process writes a cache, or trains a run, at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import LockedError


@contextmanager
def lock(root: Path, fingerprint: str, what: str = "the cache") -> Iterator[None]:
    """Hold the lock of a work folder, `<root>/<fingerprint>.lock`. Raises `LockedError` where another process holds it.

    The kernel drops the lock when its holder ends, however it ends. The file stays: removing it would let two in.
    """
    path = root / f"{fingerprint}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"another process works on {what} {fingerprint[:12]}... (it holds {path}); "
                "wait for it or stop it, then run the command again"
            ) from None
        yield
    finally:
        os.close(descriptor)
