"""What a disk has to offer: room, speed of durable writing, copies that cost nothing. Leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import LockedError
from storage.files import TEMPORARY, discard, writing

PROBE_BYTES = 32 << 20
PROBES = 3
"""Files written, each of `PROBE_BYTES`; the median counts."""
LEAST_FREE = 1 << 30
"""With less room than this the speed is not probed: the disk is nearly full, and someone may need the rest."""

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


@contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """An empty folder `<root>/.tmp-<name>` for this process alone; removed at the end, however that comes.

    What a killed process left in it is removed first, and `root` last, where it was not there. Raises `LockedError` where
    another process has it, `WriteError` where nothing may be written.
    """
    folder, made = root / f"{TEMPORARY}{name}", not root.exists()
    with writing("a probe", root):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"another process probes this disk (it holds {folder}); wait for it, then run the command again"
            ) from None
        try:
            for left_behind in list(folder.iterdir()):
                discard(left_behind)
            yield folder
        finally:
            shutil.rmtree(folder)
            if made and not any(root.iterdir()):
                root.rmdir()
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Room that this user has on the file system of `folder`, or of the nearest folder above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def write_speed(folder: Path, probe_bytes: int = PROBE_BYTES, least_free: int = LEAST_FREE) -> float | None:
    """Bytes per second of writing a file into `folder` and making it durable; None where there is less than `least_free` room.

    The content does not compress. Raises `WriteError`.
    """
    if free_bytes(folder) < max(least_free, 2 * probe_bytes):
        return None
    data, file, seconds = memoryview(os.urandom(probe_bytes)), folder / "speed", []
    with writing("a probe", folder):
        for _ in range(PROBES):
            started = time.perf_counter()
            with file.open("xb", buffering=0) as out:
                rest = data
                while rest:
                    rest = rest[out.write(rest) :]
                os.fsync(out.fileno())
            seconds.append(time.perf_counter() - started)
            file.unlink()
    return probe_bytes / statistics.median(seconds)


def can_reflink(folder: Path) -> bool | None:
    """Whether a copy within `folder` shares its blocks with the original and takes no room; None where only Linux would know."""
    if sys.platform != "linux":
        return None
    source, copy = folder / "original", folder / "copy"
    try:
        with writing("a probe", folder):
            source.write_bytes(b"x" * 4096)
            target = copy.open("wb")
        with target, source.open("rb") as data:
            try:
                fcntl.ioctl(target.fileno(), _FICLONE, data.fileno())
            except OSError:
                return False
        return True
    finally:
        for path in (source, copy):
            path.unlink(missing_ok=True)
