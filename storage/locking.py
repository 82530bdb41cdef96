"""The locks of a work folder: one process writes a cache, or trains a run, at a time, and what it shares out it says itself."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import LockedError


@contextmanager
def lock(root: Path, fingerprint: str, what: str = "the cache", *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a work folder, `<root>/<fingerprint>.lock`. Raises `LockedError` where another process holds it.

    `shared`: together with others that share it, against one that does not. The kernel drops the lock when its holder ends,
    however it ends. The file stays: removing it would let two in.
    """
    path = root / f"{fingerprint}.lock"
    with _opened(path) as descriptor:
        if not _take(descriptor, shared=shared):
            # Whoever does not keep out a sharer is one itself.
            of_jobs = not shared and _take(descriptor, shared=True)
            who = "jobs of `pipeline cache-teacher --shards` work" if of_jobs else "another process works"
            raise LockedError(
                f"{who} on {what} {fingerprint[:12]}... (it holds {path}); "
                "wait for it or stop it, then run the command again"
            )
        yield


@contextmanager
def publishing(root: Path, fingerprint: str) -> Iterator[None]:
    """Wait for, and hold, the turn to change names in the work folder `<root>/<fingerprint>`.

    Its coordinator and those that work for it may publish the same shard at the same time, a process that was given up
    for lost among them: each change is seen whole.
    """
    with _opened(root / f"{fingerprint}.publish.lock") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, *, shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
