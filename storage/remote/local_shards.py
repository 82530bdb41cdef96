"""A bounded folder of whole shards fetched from a remote cache: the least recently used one goes first.

Threads and processes may share the folder, and any of them may be killed. Each shard has a lock file: who reads the shard
holds it shared, who fetches or removes it holds it alone; its modification time says when the shard was last used. The
kernel drops the locks of a process that ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from storage.errors import CacheError, CorruptError
from storage.files import TEMPORARY, discard, writing
from storage.layout import ShardId
from storage.manifest import Files, damages, shard_folder
from storage.remote.folder import RemoteFolder

_WAIT_SECONDS = 0.02
"""Between two looks whether another reader has let go of a shard."""


class LocalShards:
    """The shards of the cache at `remote` that lie in `folder`, at most `limit` bytes of them.

    `files`: the records of each shard's files, manifests left out. Raises `CacheError` where not even the largest shard
    fits, and, as all that writes, `WriteError` where the disk is full or nothing may be written.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, files: Mapping[ShardId, Files], limit: int) -> None:
        self._remote, self._folder, self._files = remote, folder, files
        self._sizes = {shard: sum(record.size for record in records.values()) for shard, records in files.items()}
        self._limit = limit
        self._verified: set[ShardId] = set()
        largest = max(self._sizes, key=self._sizes.__getitem__)
        if self._sizes[largest] > limit:
            raise CacheError(
                f"the local folder for {remote.shown()} may hold {limit:,} bytes, and shard {largest} alone has "
                f"{self._sizes[largest]:,}; allow that much at least (machine.local_shards_gb), or fetch the whole cache with "
                "`pipeline cache pull`"
            )
        self.room_for = limit // self._sizes[largest]
        """Shards, at the least, that fit at the same time."""
        with self._writing():
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            (folder / "locks").mkdir(exist_ok=True)

    @contextmanager
    def held(self, shard: ShardId) -> Iterator[None]:
        """Within the context the shard lies in the folder, verified by SHA-256, and stays there.

        Raises `CorruptError`, naming shard and URL, where the remote shard is damaged, `RemoteError` where the store fails.
        """
        with self._lock_file(shard) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            while not self._is_here(shard):
                # Not atomic: another may come between, so each looks again once it has the lock.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._is_here(shard):
                    while not self._reserve(shard):
                        time.sleep(_WAIT_SECONDS)
                    self._fetch(shard)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.utime(descriptor)
            yield

    def fetch_ahead(self, shard: ShardId) -> None:
        """Bring the shard here if nobody is at it and there is room. Raises as `held`."""
        with self._lock_file(shard) as descriptor:
            if not _lock_alone(descriptor):
                return
            if not self._is_here(shard) and self._reserve(shard):
                self._fetch(shard)
            os.utime(descriptor)

    def drop(self, shard: ShardId) -> None:
        """Remove the copy of a shard, so that it is fetched anew; nothing where somebody reads it."""
        with self._lock_file(shard) as descriptor:
            if _lock_alone(descriptor):
                self._remove(shard)

    def _is_here(self, shard: ShardId) -> bool:
        """Whether a whole copy is in the folder; one that another process left is verified once."""
        if not self._place(shard).is_dir():
            return False
        if shard not in self._verified:
            if any(damages(self._folder, self._files[shard], digest=True)):
                return False
            self._verified.add(shard)
        return True

    def _fetch(self, shard: ShardId) -> None:
        """Fetch all files of a shard into the place that was reserved; its lock is held alone."""
        temporary = self._temporary(shard)
        try:
            with self._writing():
                for name, record in self._files[shard].items():
                    self._remote.download(name, record, temporary / Path(name).relative_to(shard_folder(shard)))
                temporary.rename(self._place(shard))
        except BaseException as error:
            with suppress(OSError):  # what is left of it is removed before the shard is fetched again
                discard(temporary)
            if isinstance(error, CorruptError):
                raise CorruptError(f"shard {shard}: {error}") from error
            raise
        self._verified.add(shard)

    def _reserve(self, shard: ShardId) -> bool:
        """Make room for a shard whose lock is held alone, and take it; False where the others are all in use."""
        self._remove(shard)
        with self._writing(), self._lock_file("room") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            present = self._present()
            taken = sum(self._sizes[other] for other in present)
            for other in present:
                if taken + self._sizes[shard] <= self._limit:
                    break
                with self._lock_file(other) as in_use:
                    if _lock_alone(in_use):
                        self._remove(other)
                        taken -= self._sizes[other]
            if taken + self._sizes[shard] > self._limit:
                return False
            self._temporary(shard).mkdir()  # from now on it counts
            return True

    def _present(self) -> list[ShardId]:
        """Shards that take room, whole or not, the one that was used longest ago first."""
        names = {_shard_name(place) for place in (self._folder / "shards").iterdir()}
        shards = [shard for shard in self._files if str(shard) in names]
        return sorted(shards, key=self._last_used)

    def _last_used(self, shard: ShardId) -> int:
        with suppress(FileNotFoundError):
            return self._lock_path(shard).stat().st_mtime_ns
        return 0

    def _remove(self, shard: ShardId) -> None:
        self._verified.discard(shard)
        place = self._place(shard)
        with self._writing():
            discard(place)
            discard(self._temporary(shard))
        shutil.rmtree(place.with_name(f"{TEMPORARY}discarded-{place.name}"), ignore_errors=True)

    def _place(self, shard: ShardId) -> Path:
        return self._folder / shard_folder(shard)

    def _temporary(self, shard: ShardId) -> Path:
        place = self._place(shard)
        return place.with_name(f"{TEMPORARY}{place.name}")

    def _lock_path(self, what: ShardId | str) -> Path:
        return self._folder / "locks" / f"{what}.lock"

    @contextmanager
    def _lock_file(self, what: ShardId | str) -> Iterator[int]:
        """An open file of its own for each holder: the kernel tells holders apart by it, threads too."""
        with self._writing():
            descriptor = os.open(self._lock_path(what), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(f"what is read of {self._remote.shown()}", self._folder)


def forget_other_caches(local: Path, root_digest: str) -> None:
    """Remove from `local`, the folder of several caches, the shards of all but one, those in use or on their way left out.

    Raises `WriteError` where nothing may be removed.
    """
    with writing("shards of other caches", local):
        for place in list(local.glob("*/shards/*.zarr")):
            folder = place.parents[1]
            if folder.name != root_digest:
                with (folder / "locks" / f"{_shard_name(place)}.lock").open("a") as file:
                    if _lock_alone(file.fileno()):
                        discard(place)


def _shard_name(place: Path) -> str:
    """The name of the shard that a folder holds: whole, on its way here, or half removed by `discard`."""
    return place.stem.removeprefix(TEMPORARY).removeprefix("discarded-")


def _lock_alone(descriptor: int) -> bool:
    """Take the lock if nobody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
