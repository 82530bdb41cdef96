"""Manifests: which files a shard and a cache consist of, with size and SHA-256 (FORMAT.md, section 5)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from storage.description import check_version
from storage.errors import CorruptError, IncompleteError, make_or_fetch
from storage.files import sha256_file
from storage.identity import canonical_json
from storage.layout import FORMAT_VERSION, ShardId

CACHE_FILE = "cache.json"
MANIFEST_FILE = "manifest.json"
COUNTED = ("sequences", "tokens", "rows", "masked")
"""What every shard counts."""
COUNTED_WHERE_RAGGED = ("entries", "draws")
"""What a shard counts only where it has such arrays: the entries of `top_ids` and of `draw_ids`."""


def json_file(value: Any) -> bytes:
    """The bytes of a JSON file of a cache: canonical JSON and a newline."""
    return canonical_json(value) + b"\n"


def shard_folder(shard: ShardId) -> str:
    """Path of a shard's Zarr group inside the cache."""
    return f"shards/{shard}.zarr"


def group_file(shard: ShardId) -> str:
    """Path of the description of a shard's Zarr group inside the cache."""
    return f"{shard_folder(shard)}/zarr.json"


def manifest_file(shard: ShardId) -> str:
    """Path of a shard's manifest inside the cache."""
    return f"manifest/{shard}.json"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file must be."""

    size: int
    sha256: str

    @classmethod
    def of_file(cls, path: Path) -> FileRecord:
        """The record of a file as it is now."""
        return cls(size=path.stat().st_size, sha256=sha256_file(path))

    @classmethod
    def of_bytes(cls, data: bytes) -> FileRecord:
        """The record of a file with this content."""
        return cls(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    def damage(self, path: Path, *, digest: bool) -> str | None:
        """What is wrong with the file at `path`; None where nothing is. Without `digest` only its size is looked at."""
        try:
            size = path.stat().st_size
            if size != self.size:
                return f"holds {size} bytes; expected {self.size}"
            if digest and (found := sha256_file(path)) != self.sha256:
                return f"has SHA-256 {found[:12]}...; expected {self.sha256[:12]}..."
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None


Files = dict[str, FileRecord]


def files_below(folder: Path, below: Path) -> Files:
    """The records of all files below the folder `below`, by path relative to `folder`."""
    return {
        path.relative_to(folder).as_posix(): FileRecord.of_file(path)
        for path in sorted(below.rglob("*"))
        if path.is_file()
    }


def damages(folder: Path, files: Mapping[str, FileRecord], *, digest: bool) -> Iterator[str]:
    """One line for each of `files` that is not as recorded."""
    for name, record in files.items():
        found = record.damage(folder / name, digest=digest)
        if found is not None:
            yield f"{name} {found}"


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What a shard manifest says without its figures, histograms among them: for whoever holds those of all shards."""

    counts: dict[str, int]
    """`sequences`, `tokens`, `rows`, `masked`; `entries` and `draws` where rows differ in their number."""
    files: Files
    teacher_saw: str
    computed_with: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ShardManifest(ShardSummary):
    """The content of `manifest/<shard>.json`: written after the shard's files, so it vouches for them."""

    shard: ShardId
    figures: dict[str, Any]

    @property
    def summary(self) -> ShardSummary:
        """All but the figures."""
        return ShardSummary(
            counts=self.counts,
            files=self.files,
            teacher_saw=self.teacher_saw,
            computed_with=self.computed_with,
        )

    def to_bytes(self) -> bytes:
        return json_file(
            {
                "shard": str(self.shard),
                "counts": self.counts,
                "files": _files_to_json(self.files),
                "teacher_saw": self.teacher_saw,
                "computed_with": self.computed_with,
                "figures": self.figures,
            }
        )

    @classmethod
    def from_bytes(cls, shard: ShardId, data: bytes) -> ShardManifest:
        """Raises `CorruptError` for anything that `to_bytes` does not make for this shard."""
        name = manifest_file(shard)
        value = _parse(name, data)
        try:
            if value["shard"] != str(shard):
                raise CorruptError(f"{name} is the manifest of {value['shard']!r}; expected {str(shard)!r}")
            return cls(
                shard=shard,
                counts=_counts_from_json(value["counts"]),
                files=_files_from_json(value["files"]),
                teacher_saw=str(value["teacher_saw"]),
                computed_with=dict(value["computed_with"]),
                figures=dict(value["figures"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CorruptError(f"{name} is not as a writer makes it: {error!r}") from error


@dataclass(frozen=True, kw_only=True)
class RootManifest:
    """The content of manifest.json: every other file of the cache."""

    fingerprint: str
    counts: dict[str, dict[str, int]]
    """Per split the sums over its shards."""
    files: Files

    @property
    def root_digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `files`: equal for two caches exactly if all their bytes are."""
        return hashlib.sha256(canonical_json(_files_to_json(self.files))).hexdigest()

    def to_bytes(self) -> bytes:
        return json_file(
            {
                "format_version": FORMAT_VERSION,
                "fingerprint": self.fingerprint,
                "counts": self.counts,
                "files": _files_to_json(self.files),
                "root_digest": self.root_digest,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> RootManifest:
        """Raises `FormatError` for another version, `CorruptError` for anything that `to_bytes` does not make."""
        value = _parse(MANIFEST_FILE, data)
        check_version(MANIFEST_FILE, value)
        try:
            manifest = cls(
                fingerprint=str(value["fingerprint"]),
                counts={split: _counts_from_json(counts) for split, counts in value["counts"].items()},
                files=_files_from_json(value["files"]),
            )
            found = value["root_digest"]
        except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise CorruptError(f"{MANIFEST_FILE} is not as a writer makes it: {error!r}") from error
        if found != manifest.root_digest:
            raise CorruptError(
                f"{MANIFEST_FILE} says root digest {found}, its files give {manifest.root_digest}; it was changed"
            )
        return manifest


def require_finished(folder: Path) -> None:
    """Raise `IncompleteError`, which says how to get one, unless a finished cache is in a folder."""
    for name in (MANIFEST_FILE, CACHE_FILE):
        if not (folder / name).is_file():
            raise IncompleteError(f"{folder} has no {name}: no finished cache is there; {make_or_fetch()}")


def sum_of_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The counts of several shards of one layout, added up."""
    total = Counter(dict.fromkeys(COUNTED, 0))
    for shard_counts in counts:
        total.update(shard_counts)
    return dict(total)


def _counts_from_json(value: Mapping[str, Any]) -> dict[str, int]:
    present = [key for key in COUNTED_WHERE_RAGGED if key in value]
    counts = {key: int(value[key]) for key in (*COUNTED, *present)}
    if min(counts.values()) < 0:
        raise ValueError(f"counts are {counts}; expected 0 or more")
    return counts


def _files_to_json(files: Files) -> dict[str, dict[str, int | str]]:
    return {name: {"size": record.size, "sha256": record.sha256} for name, record in files.items()}


def _files_from_json(value: Mapping[str, Any]) -> Files:
    for name in value:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{name!r} lies outside the cache")
    return {name: FileRecord(int(entry["size"]), str(entry["sha256"])) for name, entry in value.items()}


def _parse(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{name} holds a {type(value).__name__}; expected an object")
    return value
