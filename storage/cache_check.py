"""What is wrong with a cache: structure and sizes at once, then digests, then every chunk; all of it is listed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from storage.description import CacheDescription
from storage.errors import FETCH_AGAIN, CacheError, CorruptError, FormatError, IncompleteError, make_or_fetch
from storage.layout import ShardId
from storage.manifest import (
    CACHE_FILE,
    MANIFEST_FILE,
    FileRecord,
    Files,
    RootManifest,
    ShardManifest,
    ShardSummary,
    json_file,
    manifest_file,
    shard_folder,
    sum_of_counts,
)
from storage.shard import read_shard

Item = TypeVar("Item")
Progress = Callable[[str, int], None]

NEXT = f"{FETCH_AGAIN}, or, where teacher and tokens are, run `pipeline cache repair`"
"""What to do about a damaged cache."""
_LOADED_AT_ONCE = 4
"""Shards that are decoded side by side: each is in memory as a whole."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a cache."""

    file: str
    """Path in the cache, of a file or of a shard's folder."""
    what: str
    """`is missing`, `holds 7 bytes; expected 912`."""

    @property
    def shard(self) -> str | None:
        """Name of the shard that the file belongs to; None for one beside the shards."""
        folder, _, rest = self.file.partition("/")
        return rest.split("/")[0].split(".")[0] if folder in ("shards", "manifest") and rest else None

    def __str__(self) -> str:
        return f"{self.file} {self.what}"


class CacheCheck:
    """What is wrong with the cache in `folder`, found in three steps, each deeper than the one before.

    `structure` looks at names, sizes and manifests; `digests` reads every byte that passed it; `contents` decodes every
    shard that passed both. `problems` grows and is never cut short: one bad file hides no other. Nothing is changed.

    `progress(name, size)` is called in the caller's thread after each file (0 bytes where it was only looked at) or shard
    (0); what it raises ends the step. Files are read by `workers` threads: hashing and decompression leave Python free.

    `description` is what the cache ought to be, where the caller knows it: then its own cache.json is not needed.

    Raises `IncompleteError` where there is no cache at all, `FormatError` where it needs a newer reader.
    """

    def __init__(
        self, folder: Path, *, description: CacheDescription | None = None, workers: int | None = None
    ) -> None:
        if not any((folder / name).exists() for name in (CACHE_FILE, MANIFEST_FILE, "shards", "manifest")):
            raise IncompleteError(f"{folder} holds no cache; {make_or_fetch()}")
        self.folder = folder
        self.problems: list[Problem] = []
        self.manifest: RootManifest | None = None
        self.description = description
        """The plan; None where cache.json cannot be believed."""
        self.shards: dict[ShardId, ShardSummary] = {}
        """The shards of the plan whose manifest can be read, and what it says."""
        self.files: Files = {}
        """What must be there, as far as manifests say so."""
        self.unfit: list[ShardId] = []
        """Shards that are as their manifests say, and yet cannot be read."""
        self._newer: FormatError | None = None
        self._workers = workers or min(32, os.cpu_count() or 1)
        self._bad: set[str] = set()

    @property
    def bytes(self) -> int:
        """Of all files that must be there."""
        return sum(record.size for record in self.files.values())

    @property
    def bad_shards(self) -> list[ShardId]:
        """The shards of the plan that a problem names, in order."""
        named = {problem.shard for problem in self.problems}
        planned = self.description.shard_ids() if self.description else list(self.shards)
        return [shard for shard in planned if str(shard) in named]

    def structure(self, progress: Progress | None = None) -> None:
        """Compare manifests, plan and folder; a missing, truncated, empty or unknown file is found by its name and size."""
        tell: Progress = progress or (lambda _name, _size: None)
        self._read_manifest()
        self._read_description()
        planned = self.description.shard_ids() if self.description else _shards_named(self.manifest)
        for shard in planned:
            if not (self.folder / shard_folder(shard)).is_dir():
                self._note(shard_folder(shard), "is missing: the whole shard is gone")
            self._read_shard_manifest(shard)
            tell(manifest_file(shard), 0)
        for summary in self.shards.values():
            self.files.update(summary.files)
        if self.manifest is not None:
            self.files.update(self.manifest.files)
            self._compare_plan(self.manifest, planned)
        for name, record in self.files.items():
            if name not in self._bad and _group(name) not in self._bad:
                self._note(name, record.damage(self.folder / name, digest=False))
            tell(name, 0)
        self._find_strangers(planned, tell)

    def digests(self, progress: Progress | None = None) -> None:
        """SHA-256 of every file that has the right size."""
        names = [name for name in self.files if name not in self._bad and _group(name) not in self._bad]

        def check(name: str) -> tuple[str, int, str | None]:
            return name, self.files[name].size, self.files[name].damage(self.folder / name, digest=True)

        self._run(check, names, progress, self._workers)

    def contents(self, progress: Progress | None = None) -> None:
        """Load every shard as a student would: crc32c of each chunk, fill values, ranges, offsets, `teacher_saw`."""
        description = self.description
        if description is None:
            return  # said already; without layouts nothing can be decoded
        bad = set(self.bad_shards)

        def load(shard: ShardId) -> tuple[str, int, str | None]:
            manifest, name = self.shards[shard], shard_folder(shard)
            try:
                read_shard(
                    self.folder / name,
                    description,
                    shard,
                    counts=manifest.counts,
                    teacher_saw=manifest.teacher_saw,
                )
            except CorruptError as error:
                self.unfit.append(shard)
                return name, 0, f"cannot be used: {str(error).partition(': ')[2].rpartition('; ')[0]}"
            return name, 0, None

        shards = [shard for shard in self.shards if shard not in bad]
        self._run(load, shards, progress, min(self._workers, _LOADED_AT_ONCE))

    def _note(self, file: str, what: str | None) -> None:
        if what is not None:
            self._bad.add(file)
            self.problems.append(Problem(file=file, what=what))

    def _run(
        self,
        check: Callable[[Item], tuple[str, int, str | None]],
        items: Iterable[Item],
        progress: Progress | None,
        workers: int,
    ) -> None:
        executor = ThreadPoolExecutor(workers)
        try:
            for name, size, what in executor.map(check, items):
                self._note(name, what)
                if progress is not None:
                    progress(name, size)
        finally:
            executor.shutdown(cancel_futures=True)

    def _read_manifest(self) -> None:
        try:
            data = (self.folder / MANIFEST_FILE).read_bytes()
            self.manifest = RootManifest.from_bytes(data)
        except OSError as error:
            self._note(MANIFEST_FILE, _unreadable(error))
        except CacheError as error:
            self._newer = error if isinstance(error, FormatError) else None
            self._note(MANIFEST_FILE, _without_name(error, MANIFEST_FILE))
        else:
            if data != self.manifest.to_bytes():
                self._note(MANIFEST_FILE, "is not canonical JSON: it was changed")

    def _read_description(self) -> None:
        record = self.manifest.files.get(CACHE_FILE) if self.manifest else None
        if self.description is not None:
            record = FileRecord.of_bytes(json_file(self.description.to_json()))
        if record is not None and (damage := record.damage(self.folder / CACHE_FILE, digest=True)) is not None:
            self._believe_one(damage)
        elif self.description is None:
            self._parse_description()
        found, expected = self.manifest, self.description
        if found is not None and expected is not None and found.fingerprint != expected.fingerprint:
            self._note_foreign(found.fingerprint, expected.fingerprint)

    def _believe_one(self, damage: str) -> None:
        """cache.json is not what it should be: damaged, or whole beside the root manifest of another cache."""
        with suppress(OSError, CacheError):
            # Its fingerprint covers what it says of itself, so it is not damaged where that is right and another one.
            description = CacheDescription.from_bytes((self.folder / CACHE_FILE).read_bytes())
            if self.manifest and description.fingerprint != self.manifest.fingerprint and self.description is None:
                self._note_foreign(self.manifest.fingerprint, description.fingerprint)
                self.description = description
                return
        self._note(CACHE_FILE, damage)  # what else it says is not to be believed

    def _note_foreign(self, found: str, expected: str) -> None:
        self._note(
            MANIFEST_FILE, f"is of another cache: fingerprint {found[:12]}..., {CACHE_FILE} has {expected[:12]}..."
        )
        self.manifest = None  # what it says of the other files is about others

    def _parse_description(self) -> None:
        try:
            self.description = CacheDescription.from_bytes((self.folder / CACHE_FILE).read_bytes())
        except OSError as error:
            self._note(CACHE_FILE, _unreadable(error))
        except FormatError as error:
            if self.manifest is not None or self._newer is not None:
                raise  # one file may be damaged; two that agree are of a newer version
            self._note(CACHE_FILE, _without_name(error, CACHE_FILE))
        except CacheError as error:
            self._note(CACHE_FILE, _without_name(error, CACHE_FILE))

    def _note_unless_known(self, file: str, what: str) -> None:
        if file not in self._bad:
            self._note(file, what)

    def _read_shard_manifest(self, shard: ShardId) -> None:
        name = manifest_file(shard)
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            self._note(name, _unreadable(error))
            return
        record = self.manifest.files.get(name) if self.manifest else None
        if self.manifest is not None and record is None:
            self._note(name, f"is not listed in {MANIFEST_FILE}")
        elif record is not None and record != FileRecord.of_bytes(data):
            self._note(name, record.damage(self.folder / name, digest=True))
        try:
            found = ShardManifest.from_bytes(shard, data)
        except CorruptError as error:
            self._note_unless_known(name, _without_name(error, name))
            return
        if self.manifest is not None and any(
            self.manifest.files.get(key) != value for key, value in found.files.items()
        ):
            self._note_unless_known(name, f"and {MANIFEST_FILE} disagree about the shard's files")
            return
        self.shards[shard] = found.summary

    def _compare_plan(self, manifest: RootManifest, planned: list[ShardId]) -> None:
        if self.description is None or len(self.shards) < len(planned):
            return  # what is missing is said already
        if {name for name in manifest.files if name.startswith("manifest/")} != set(map(manifest_file, planned)):
            self._note_unless_known(MANIFEST_FILE, f"lists other shards than {CACHE_FILE} plans")
        counts = {
            split: sum_of_counts(found.counts for shard, found in self.shards.items() if shard.split == split)
            for split in self.description.splits
        }
        if counts != manifest.counts:
            self._note_unless_known(MANIFEST_FILE, "has other counts than the shards' manifests add up to")

    def _find_strangers(self, planned: list[ShardId], tell: Progress) -> None:
        """Files that no manifest lists; those of a shard that is bad anyway, or not planned, are one problem together."""
        known = {MANIFEST_FILE, CACHE_FILE, *self.files, *(manifest_file(shard) for shard in planned)}
        groups = {shard_folder(shard) for shard in planned}
        paths = []
        for path in self.folder.rglob("*"):
            paths.append(path)
            tell(path.name, 0)
        for path in sorted(paths):
            name = path.relative_to(self.folder).as_posix()
            if name in known or (path.is_dir() and not path.is_symlink()):
                continue
            group = _group(name)
            if self.manifest is None and (not name.startswith(("shards/", "manifest/")) or group in groups):
                continue  # without a root manifest nothing says which files there are beside the shards
            if name.startswith("shards/") and group not in groups:
                if group not in self._bad:
                    self._note(group, "is a shard that is not in the plan of this cache")
            else:
                self._note(name, "is not part of this cache")


def _shards_named(manifest: RootManifest | None) -> list[ShardId]:
    """The shards whose manifests the root manifest lists."""
    shards = []
    for name in manifest.files if manifest else ():
        with suppress(CorruptError):  # not a shard's; `_compare_plan` finds it
            shards += [ShardId.parse(Path(name).stem)] if name.startswith("manifest/") else []
    return sorted(shards)


def _group(name: str) -> str:
    """The folder of the shard that a file lies in."""
    return "/".join(name.split("/")[:2])


def _unreadable(error: OSError) -> str:
    return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"


def _without_name(error: CacheError, name: str) -> str:
    return str(error).removeprefix(f"{name} ")
