"""A remote root: caches under `<root>/<fingerprint>/`, each finished when its manifest.json is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TypeVar

from storage.description import CacheDescription
from storage.errors import CorruptError, FormatError, IncompleteError, MismatchError, RemoteError
from storage.layout import ShardId, Split
from storage.manifest import CACHE_FILE, MANIFEST_FILE, FileRecord, RootManifest, group_file, json_file, manifest_file
from storage.remote.folder import MEND, RemoteFolder

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 8
"""Files that are copied at the same time."""

_FINGERPRINT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """cache.json and manifest.json of a finished cache: parsed, checked against each other, and their bytes."""

    description: CacheDescription
    manifest: RootManifest
    description_bytes: bytes
    manifest_bytes: bytes

    @classmethod
    def fetch(cls, folder: RemoteFolder, root_digest: str | None = None) -> Identity:
        """The identity of the cache at a remote folder; `root_digest`: what it must have.

        Raises `IncompleteError` where no finished cache is, `FormatError` for one that needs a newer reader,
        `CorruptError` for files that are not what a writer makes, `MismatchError` for another root digest; each names the
        URL.
        """
        found: dict[str, bytes] = {}
        for name in (MANIFEST_FILE, CACHE_FILE):
            data = folder.read(name)
            if data is None:
                raise IncompleteError(
                    f"{folder.shown()} has no {name}: no finished cache is there; "
                    "finish it, where the cache is or is made, with `pipeline cache push` or `pipeline cache-teacher --root`"
                )
            found[name] = data
        try:
            # Versions and features first: the digests of a newer cache may be made otherwise.
            description = CacheDescription.from_bytes(found[CACHE_FILE])
            manifest = RootManifest.from_bytes(found[MANIFEST_FILE])
        except (CorruptError, FormatError) as error:
            raise _at(folder, error) from error
        wrong = _contradiction(description, manifest, found[CACHE_FILE])
        if wrong is not None:
            raise CorruptError(f"{folder.shown(MANIFEST_FILE)} {wrong}; {MEND}")
        if root_digest not in {None, manifest.root_digest}:
            raise MismatchError(
                f"{folder.shown()} has root digest {manifest.root_digest[:12]}...; expected {str(root_digest)[:12]}..., the "
                "cache that is meant here (cache/manifest.json says it, where DVC tracks that file); `git checkout` the revision "
                "that belongs to the one there, or name the root that has the other"
            )
        return cls(
            description=description,
            manifest=manifest,
            description_bytes=found[CACHE_FILE],
            manifest_bytes=found[MANIFEST_FILE],
        )

    def only(self, splits: Collection[Split]) -> Identity:
        """The cache that holds just these splits of this one: the same fingerprint, another root digest.

        Raises `MismatchError` for a split that is not there.
        """
        absent = sorted(set(splits) - self.description.splits.keys())
        if absent:
            raise MismatchError(
                f"the cache holds no {', '.join(absent)}; it has {', '.join(self.description.splits)}; name some of these"
            )
        kept = {name: split for name, split in self.description.splits.items() if name in splits}
        description = replace(self.description, splits=kept)
        data = json_file(description.to_json())
        left_out = {shard for shard in self.description.shard_ids() if shard.split not in kept}
        files = {name: record for name, record in self.manifest.files.items() if shard_of(name) not in left_out}
        counts: dict[str, dict[str, int]] = {
            split: counts for split, counts in self.manifest.counts.items() if split in kept
        }
        manifest = replace(self.manifest, counts=counts, files={**files, CACHE_FILE: FileRecord.of_bytes(data)})
        return Identity(
            description=description, manifest=manifest, description_bytes=data, manifest_bytes=manifest.to_bytes()
        )

    @property
    def size(self) -> int:
        """Bytes of all files but manifest.json."""
        return sum(record.size for record in self.manifest.files.values())


def manifest_at(folder: RemoteFolder) -> RootManifest | None:
    """What manifest.json of a remote cache says; None where there is none, or a damaged one, which vouches for nothing.

    Raises `FormatError`, naming the URL, for one that needs a newer reader.
    """
    data = folder.read(MANIFEST_FILE)
    try:
        return None if data is None else RootManifest.from_bytes(data)
    except CorruptError:
        return None
    except FormatError as error:
        raise _at(folder, error) from error


def shard_of(name: str) -> ShardId | None:
    """The shard that a file of a cache belongs to, its manifest included; None for a file beside the shards."""
    parts = name.split("/")
    if parts[0] not in {"shards", "manifest"} or len(parts) < 2:
        return None
    return ShardId.parse(parts[1].removesuffix(".zarr").removesuffix(".json"))


def finished_caches(root: RemoteFolder) -> dict[str, CacheDescription | FormatError]:
    """The finished caches at a root by fingerprint; for one that this version does not read, the reason.

    Raises `CorruptError` for one that is damaged.
    """
    names = [name for name in root.folders() if _FINGERPRINT.fullmatch(name)]
    found: dict[str, CacheDescription | FormatError] = {}

    def look(name: str) -> CacheDescription | FormatError | None:
        try:
            return Identity.fetch(root.below(name)).description
        except IncompleteError:
            return None
        except FormatError as error:
            return error

    def keep(name: str, result: CacheDescription | FormatError | None) -> None:
        if result is not None:
            found[name] = result

    for_each(names, look, keep)
    return dict(sorted(found.items()))


def resolve(root: RemoteFolder, prefix: str) -> str:
    """The fingerprint at a root that begins with `prefix`; a whole one is taken as it is, without looking.

    Raises `RemoteError` where none or several begin so.
    """
    if _FINGERPRINT.fullmatch(prefix):
        return prefix
    there = [name for name in root.folders() if _FINGERPRINT.fullmatch(name)]
    found = [name for name in there if name.startswith(prefix)]
    if len(found) != 1:
        raise RemoteError(
            f"{root.shown()} holds {len(found)} caches whose fingerprint begins with {prefix!r}; expected one; "
            f"there are: {', '.join(found or there) or 'none'}"
        )
    return found[0]


def for_each(
    items: Iterable[T], work: Callable[[T], R], done: Callable[[T, R], None], *, workers: int = WORKERS
) -> None:
    """Run `work(item)` in a bounded pool of threads, `done(item, result)` in this thread as each ends.

    The first error of either ends it: nothing new is begun, what runs is waited for.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="transfer") as pool:
        waiting = iter(items)
        running: dict[Future[R], T] = {}

        def begin() -> None:
            for item in waiting:
                running[pool.submit(work, item)] = item
                if len(running) >= 2 * workers:  # a cache may have millions of files
                    return

        try:
            begin()
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    item = running.pop(future)
                    done(item, future.result())
                begin()
        finally:
            for future in running:
                future.cancel()


def _at(folder: RemoteFolder, error: CorruptError | FormatError) -> CorruptError | FormatError:
    """The same error, naming the URL and, for damage, what to do."""
    what = f"; {MEND}" if isinstance(error, CorruptError) else ""
    return type(error)(f"{folder.shown()}: {error}{what}")


def _contradiction(description: CacheDescription, manifest: RootManifest, cache_file: bytes) -> str | None:
    if manifest.fingerprint != description.fingerprint:
        return f"is of cache {manifest.fingerprint[:12]}..., {CACHE_FILE} of {description.fingerprint[:12]}..."
    if manifest.files.get(CACHE_FILE) != FileRecord.of_bytes(cache_file):
        return f"was made for another {CACHE_FILE}"
    for shard in description.shard_ids():
        for name in (manifest_file(shard), group_file(shard)):
            if name not in manifest.files:
                return f"lists no {name}"
    return None
