"""Verifying a whole cache: one error that counts what is wrong and names the first of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from storage.cache_check import NEXT, CacheCheck, Progress
from storage.errors import CorruptError
from storage.manifest import require_finished

_SHOWN = 5
"""Problems named in the message of `verify_cache`; a lost disk may have thousands."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found whole."""

    files: int
    bytes: int
    root_digest: str


def verify_cache(folder: Path, *, deep: bool = False, progress: Progress | None = None) -> Verified:
    """Check size and SHA-256 of every file of a finished cache; with `deep`, also read every shard as a student would.

    `progress(name, size)` is called as by `CacheCheck`: the sizes add up to the bytes of the cache.
    Raises `IncompleteError` where no finished cache is, or `CorruptError` that counts the problems and names the first
    ones; `CacheCheck` has them all.
    """
    require_finished(folder)
    check = CacheCheck(folder)
    check.structure(progress)
    check.digests(progress)
    if deep:
        check.contents(progress)
    if check.problems or check.manifest is None:
        shown = "; ".join(map(str, check.problems[:_SHOWN]))
        more = f" and {len(check.problems) - _SHOWN} more" if len(check.problems) > _SHOWN else ""
        raise CorruptError(
            f"{folder}: {len(check.problems)} problems in {len(check.files)} files: {shown}{more}; {NEXT}"
        )
    return Verified(files=len(check.files), bytes=check.bytes, root_digest=check.manifest.root_digest)
