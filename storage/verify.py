"""Verifying a whole cache, byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import CorruptError
from storage.reader import CacheReader, read_identity

_SHOWN = 5
"""Damaged files named in the message; a lost disk may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found whole."""

    files: int
    bytes: int
    root_digest: str


def verify_cache(folder: Path, *, deep: bool = False, progress: Callable[[str, int], None] | None = None) -> Verified:
    """Check size and SHA-256 of every file of a finished cache; with `deep`, also read every shard as a student would.

    `progress(name, size)` is called after each file (its path and its bytes) and, with `deep`, each shard (0 bytes).
    Raises `IncompleteError`, `FormatError`, or `CorruptError` that counts the damaged files and names the first ones.
    """
    description, manifest = read_identity(folder)
    damaged: list[str] = []
    for name, record in manifest.files.items():
        damage = record.damage(folder / name, digest=True)
        if damage is not None:
            damaged.append(f"{name} {damage}")
        if progress is not None:
            progress(name, record.size)
    if damaged:
        more = f" and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
        raise CorruptError(
            f"{folder}: {len(damaged)} of {len(manifest.files)} files are damaged: "
            f"{'; '.join(damaged[:_SHOWN])}{more}; "
            "fetch the cache again (`dvc checkout` or `dvc pull`) or run `pipeline cache-teacher`"
        )
    if deep:
        reader = CacheReader(folder)
        for shard in description.shard_ids():
            reader.load(shard)
            if progress is not None:
                progress(str(shard), 0)
    size = sum(record.size for record in manifest.files.values())
    return Verified(files=len(manifest.files), bytes=size, root_digest=manifest.root_digest)
