"""Reading a cache where it lies: whole shards are fetched into a bounded local folder and read from there."""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from storage.arrays import TARGETS, Target
from storage.errors import CorruptError
from storage.files import write_durably, writing
from storage.layout import ShardId
from storage.manifest import CACHE_FILE, MANIFEST_FILE, FileRecord, Files
from storage.reader import CacheReader
from storage.remote.folder import RemoteFolder
from storage.remote.local_shards import LocalShards
from storage.remote.root import Identity, for_each, shard_of
from storage.shard import Allocate, allocate_new
from storage.shard_arrays import ShardArrays

LIMIT_BYTES = 16 << 30
PREFETCH = 2


def open_cache(
    location: str | Path, *, local: Path | None = None, limit_bytes: int = LIMIT_BYTES, prefetch: int = PREFETCH
) -> CacheReader:
    """The finished cache in a folder, or at the URL `<root>/<fingerprint>`.

    For a URL, `local` is the folder that holds at most `limit_bytes` bytes of shards, `prefetch` how many shards may be
    fetched ahead. Raises as `CacheReader` and `RemoteReader` do.
    """
    if isinstance(location, Path) or "://" not in location:
        return CacheReader(Path(location))
    if local is None:
        raise ValueError(f"{location} is remote; expected local=FOLDER, where its shards may lie")
    return RemoteReader(location, local, limit_bytes=limit_bytes, prefetch=prefetch)


class RemoteReader(CacheReader):
    """A finished cache at a URL, open for reading.

    Opening fetches what belongs to no shard (head, tokenizer) and the shards' manifests into `<local>/<root digest>`,
    all verified by SHA-256. `load` fetches a shard whole, verifies each file by SHA-256, and then reads it with all checks of
    the local reader. At most `limit_bytes` of shards lie there; threads and processes may share the folder, and the next
    run finds it again. Shards are fetched ahead where `prefetch` was called, or where shards are loaded in their order.

    Raises what `CacheReader` does, naming shard, file and URL, `MismatchError` for a cache that has not `root_digest`, and
    `RemoteError` where the store fails.
    """

    def __init__(
        self,
        url: str,
        local: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        prefetch: int = PREFETCH,
        root_digest: str | None = None,
    ) -> None:
        self._remote = RemoteFolder(url)
        identity = Identity.fetch(self._remote, root_digest)
        # Opened again, in another process, it must be the same cache.
        self._arguments = (url, local, limit_bytes, prefetch, identity.manifest.root_digest)
        # Not CacheReader's own __init__, which wants every shard to be there.
        self.folder = local / identity.manifest.root_digest
        self.description, self._manifest = identity.description, identity.manifest
        self.root_digest = identity.manifest.root_digest
        self._shard_manifests = {}
        shards: dict[ShardId, Files] = {shard: {} for shard in self.description.shard_ids()}
        beside: Files = {}
        for name, record in identity.manifest.files.items():
            shard = shard_of(name)
            (shards[shard] if shard is not None and name.startswith("shards/") else beside)[name] = record
        self._local = LocalShards(self._remote, self.folder, shards, limit_bytes)
        self._fetch_what_is_beside_the_shards(identity, beside)
        # One place stays for the shard that is being read.
        self._ahead = min(prefetch, self._local.room_for - 1)
        self._pool = ThreadPoolExecutor(max(1, self._ahead), thread_name_prefix="prefetch")
        self._coming: dict[ShardId, Future[None]] = {}
        self._coming_lock = Lock()
        self._last: ShardId | None = None
        self._told = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was opened with: connections and threads do not travel."""
        return _reopen, self._arguments

    def load(
        self, shard: ShardId, allocate: Allocate = allocate_new, *, targets: Collection[Target] = TARGETS
    ) -> ShardArrays:
        """One shard, still encoded, with the given targets; fetched first, whole, where it is not in the local folder."""
        self.description.span(shard)
        try:
            arrays = self._load(shard, allocate, targets)
        except CorruptError:
            # The copy here was damaged after it had been verified: the one there may be good.
            self._local.drop(shard)
            arrays = self._load(shard, allocate, targets)
        self._read_ahead(shard)
        return arrays

    def prefetch(self, shards: Iterable[ShardId]) -> None:
        """Begin to fetch the shards that will be read next, nearest first; as many as the reader was opened for.

        From now on they are told: reading in the shards' own order is no longer taken for a plan.
        """
        self._told = True
        self._begin_to_fetch(shards)

    def _begin_to_fetch(self, shards: Iterable[ShardId]) -> None:
        with self._coming_lock:
            self._coming = {shard: future for shard, future in self._coming.items() if not future.done()}
            for shard in shards:
                if len(self._coming) >= self._ahead:
                    return
                if shard not in self._coming:
                    # What goes wrong there goes wrong again in `load`, where it is raised.
                    self._coming[shard] = self._pool.submit(self._local.fetch_ahead, shard)

    def close(self) -> None:
        """Stop fetching ahead. Reading goes on to work."""
        self._ahead = 0
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, shard: ShardId, allocate: Allocate, targets: Collection[Target]) -> ShardArrays:
        with self._local.held(shard):
            try:
                return super().load(shard, allocate, targets=targets)
            except CorruptError as error:
                raise CorruptError(f"{self._remote.shown()}: {error}") from error

    def _read_ahead(self, shard: ShardId) -> None:
        """Fetch what comes next where shards are loaded in their order. A shuffled order is for `prefetch` to tell."""
        if self._told:
            return
        order = self.shards(shard.split, shard.variant)
        if self._last is not None and order[max(0, shard.number - 1)] == self._last != shard:
            self._begin_to_fetch(order[shard.number + 1 : shard.number + 1 + self._ahead])
        self._last = shard

    def _fetch_what_is_beside_the_shards(self, identity: Identity, files: Files) -> None:
        def fetch(name: str) -> None:
            if files[name].damage(self.folder / name, digest=True) is not None:
                self._remote.download(name, files[name], self.folder / name)

        what = f"what is read of {self._remote.shown()}"
        with writing(what, self.folder), (self.folder / "locks" / "open.lock").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            for_each(files, fetch, lambda _name, _nothing: None)
            for name, data in (
                (CACHE_FILE, identity.description_bytes),
                (MANIFEST_FILE, identity.manifest_bytes),
            ):
                path = self.folder / name
                if not path.is_file() or FileRecord.of_file(path) != FileRecord.of_bytes(data):
                    write_durably(path, data)


def _reopen(url: str, local: Path, limit_bytes: int, prefetch: int, root_digest: str) -> RemoteReader:
    return RemoteReader(url, local, limit_bytes=limit_bytes, prefetch=prefetch, root_digest=root_digest)
