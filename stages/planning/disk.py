"""The disk that a cache will lie on: is there room, and how fast is it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.disk_probe import can_reflink, free_bytes, write_speed
from storage.files import has_other_names


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Of the project folder; the cache lies elsewhere with `at_root`."""

    at_root: bool
    free_bytes: int
    write_bytes_per_second: float | None
    """Of durable writing here; None where it was not probed: the cache goes to a root, or the disk is nearly full."""
    reflinks: bool | None
    """Whether DVC's copy shares its blocks with the cache; None: not known."""
    hard_links: bool
    """Whether this project's files are hard links into DVC's store, as the cache will be."""

    @property
    def copies(self) -> int:
        """How often the cache will lie here: DVC keeps a second one where it cannot share files or blocks."""
        return 0 if self.at_root else 1 if self.hard_links or self.reflinks else 2

    def write_seconds(self, cache_bytes: int) -> float | None:
        """Of a cache of that size; None where the speed is not known."""
        return None if self.write_bytes_per_second is None else cache_bytes / self.write_bytes_per_second

    def needing(self, cache_bytes: int) -> dict[str, Any]:
        """What there is and what a cache of that size takes, as plain JSON."""
        speed = self.write_bytes_per_second
        return {
            "at_root": self.at_root,
            "free_bytes": self.free_bytes,
            "reflinks": self.reflinks,
            "hard_links": self.hard_links,
            "copies": self.copies,
            "needed_bytes": self.copies * cache_bytes,
            "fits": self.copies * cache_bytes <= self.free_bytes,
            "write_bytes_per_second": None if speed is None else round(speed),
        }


def probe_disk(folder: Path, *, at_root: bool, tracked: Path) -> Disk:
    """Look at the file system of the folder `folder`, where some tens of megabytes are written and removed again.

    `tracked`: a folder that DVC has in its store, where there is a DVC.
    """
    return Disk(
        at_root=at_root,
        free_bytes=free_bytes(folder),
        write_bytes_per_second=None if at_root else write_speed(folder),
        reflinks=can_reflink(folder),
        hard_links=has_other_names(tracked),
    )
