"""Reading a finished cache: nothing wrong is ever returned silently (FORMAT.md, section 9)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from storage.arrays import TARGETS, Target
from storage.description import CacheDescription
from storage.errors import FETCH_OR_MAKE_AGAIN, CorruptError
from storage.layout import ShardId, Split
from storage.manifest import (
    CACHE_FILE,
    MANIFEST_FILE,
    FileRecord,
    Files,
    RootManifest,
    ShardManifest,
    damages,
    manifest_file,
    require_finished,
    shard_folder,
    sum_of_counts,
)
from storage.shard import Allocate, Engine, allocate_new, read_shard
from storage.shard_arrays import ShardArrays


class CacheReader:
    """A finished cache, open for reading.

    Opening checks the version, the features, the root digest, the size of every file, and the digest of every file that
    belongs to no shard (head, tokenizer). `load` checks the rest, shard by shard. Safe to share between threads and to
    pickle. `engine` is what decodes: `own` is the fastest; `zarr` (zarr-python) and `zarrs` (the package of that name) read any
    codecs that they know.

    Raises `IncompleteError` where no finished cache is, `FormatError` for one that needs a newer reader and
    `CorruptError` for one that is not as its manifest says.
    """

    engine: Engine = "own"
    """What decodes the arrays. A default, as a reader at a remote root is not opened by the `__init__` below."""

    def __init__(self, folder: str | Path, *, engine: Engine = "own") -> None:
        self.folder, self.engine = Path(folder), engine
        self.description, self._manifest = read_identity(self.folder)
        self.root_digest: str = self._manifest.root_digest
        in_shards = {name: record for name, record in self._manifest.files.items() if name.startswith("shards/")}
        beside = {
            name: record
            for name, record in self._manifest.files.items()
            if name not in in_shards and not name.startswith("manifest/")
        }
        _refuse_damage(self.folder, self._manifest.files, digest=False)
        _refuse_damage(self.folder, beside, digest=True)
        self._shard_manifests: dict[ShardId, ShardManifest] = {}

    @property
    def files(self) -> Files:
        """Size and SHA-256 of every file but manifest.json, by path in the cache."""
        return self._manifest.files

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Per split, summed over its shards (so over all variants): what `shard_counts` gives for one.

        Raises `CorruptError` where the root manifest says otherwise: its root digest covers the files and not the counts.
        """
        for split, found in self._manifest.counts.items():
            shards = [shard for shard in self.description.shard_ids() if shard.split == split]
            if found != sum_of_counts(map(self.shard_counts, shards)):
                raise CorruptError(
                    f"{self.folder / MANIFEST_FILE} has other counts of {split} than its shards' manifests add up to; {FETCH_OR_MAKE_AGAIN}"
                )
        return self._manifest.counts

    def shards(self, split: Split, variant: int = 0) -> list[ShardId]:
        """The shards of one variant of a split, in order. Empty where the cache does not hold it."""
        return [shard for shard in self.description.shard_ids() if (shard.split, shard.variant) == (split, variant)]

    def shard_counts(self, shard: ShardId) -> dict[str, int]:
        """`sequences`, `tokens`, `rows` and `masked` of one shard; `entries` and `draws` where rows differ in them."""
        return self._shard_manifest(shard).counts

    def teacher_saw(self, shard: ShardId) -> str:
        """SHA-256 of the tokens and masks of one shard: equal for caches of other teachers that saw the same."""
        return self._shard_manifest(shard).teacher_saw

    def shard_figures(self, shard: ShardId) -> dict[str, Any]:
        """The figures that the writer recorded for a shard (retained mass, saturated gaps)."""
        return self._shard_manifest(shard).figures

    def load(
        self, shard: ShardId, allocate: Allocate = allocate_new, *, targets: Collection[Target] = TARGETS
    ) -> ShardArrays:
        """One shard, still encoded, in memory that `allocate` gives (`storage.shard.Allocate`).

        Of the teacher's targets only the given ones are read, decoded and checked; of the files of the others, that they are there and
        have their sizes.

        Raises `CorruptError`, naming shard and file, for anything that is not as it was written.
        """
        manifest = self._shard_manifest(shard)
        _refuse_damage(self.folder, manifest.files, digest=False)
        metadata = {name: record for name, record in manifest.files.items() if name.endswith("/zarr.json")}
        _refuse_damage(self.folder, metadata, digest=True)
        return read_shard(
            self.folder / shard_folder(shard),
            self.description,
            shard,
            counts=manifest.counts,
            teacher_saw=manifest.teacher_saw,
            allocate=allocate,
            targets=targets,
            engine=self.engine,
        )

    def prefetch(self, shards: Iterable[ShardId]) -> None:
        """A hint which shards will be loaded next, nearest first: where they lie here, there is nothing to fetch."""

    def close(self) -> None:
        """Let go of what reading ahead holds: where the cache lies here, nothing."""

    def _shard_manifest(self, shard: ShardId) -> ShardManifest:
        if shard not in self._shard_manifests:
            self.description.span(shard)
            name = manifest_file(shard)
            data = _read(self.folder, name)
            if FileRecord.of_bytes(data) != self._manifest.files.get(name):
                raise CorruptError(f"{self.folder / name} is not as {MANIFEST_FILE} says; {FETCH_OR_MAKE_AGAIN}")
            manifest = ShardManifest.from_bytes(shard, data)
            if any(self._manifest.files.get(file) != record for file, record in manifest.files.items()):
                raise CorruptError(
                    f"{self.folder / name} and {MANIFEST_FILE} disagree about the shard's files; {FETCH_OR_MAKE_AGAIN}"
                )
            self._shard_manifests[shard] = manifest
        return self._shard_manifests[shard]


def read_identity(folder: Path) -> tuple[CacheDescription, RootManifest]:
    """cache.json and manifest.json of a finished cache, checked against each other but not against the other files.

    Raises as `CacheReader` does.
    """
    require_finished(folder)
    # Versions and features first: the digests of a newer cache may be made otherwise.
    data = _read(folder, CACHE_FILE)
    try:
        description = CacheDescription.from_bytes(data)
        manifest = RootManifest.from_bytes(_read(folder, MANIFEST_FILE))
    except CorruptError as error:
        raise CorruptError(f"{folder}: {error}; {FETCH_OR_MAKE_AGAIN}") from error
    if manifest.fingerprint != description.fingerprint or manifest.files.get(CACHE_FILE) != FileRecord.of_bytes(data):
        raise CorruptError(
            f"{folder / CACHE_FILE} is not the one that {MANIFEST_FILE} was made for; {FETCH_OR_MAKE_AGAIN}"
        )
    if set(manifest.counts) != set(description.splits):
        raise CorruptError(
            f"{folder / MANIFEST_FILE} has no counts of the splits in {CACHE_FILE}; {FETCH_OR_MAKE_AGAIN}"
        )
    unlisted = [shard for shard in description.shard_ids() if manifest_file(shard) not in manifest.files]
    if unlisted:
        raise CorruptError(f"{folder / MANIFEST_FILE} lists no {manifest_file(unlisted[0])}; {FETCH_OR_MAKE_AGAIN}")
    return description, manifest


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise CorruptError(f"{folder / name} cannot be read ({error.strerror}); {FETCH_OR_MAKE_AGAIN}") from error


def _refuse_damage(folder: Path, files: Files, *, digest: bool) -> None:
    damage = next(damages(folder, files, digest=digest), None)
    if damage is not None:
        raise CorruptError(f"{folder}: {damage}; {FETCH_OR_MAKE_AGAIN}")
