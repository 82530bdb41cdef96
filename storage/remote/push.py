"""Copying a finished cache to a remote root, shard by shard, manifest.json last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.locking import lock
from storage.manifest import MANIFEST_FILE
from storage.reader import read_identity
from storage.remote.copying import Group, copy_group, groups, refuse_another, refuse_unfinished
from storage.remote.folder import RemoteFolder
from storage.remote.root import WORKERS, for_each
from storage.verify import verify_cache

Begun = Callable[[str, int], None]
Advanced = Callable[[int], None]

AGAIN = "`pipeline cache push` goes on from here"


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """What a push or a pull did."""

    fingerprint: str
    root_digest: str
    files: int
    bytes: int
    """Of the whole cache, or of the splits that were asked for."""
    moved: int
    """Bytes that went over the wire; the others were there."""


def push(
    cache: Path,
    root: RemoteFolder,
    work: Path,
    *,
    verify: bool = False,
    workers: int = WORKERS,
    begun: Begun = lambda _task, _bytes: None,
    advanced: Advanced = lambda _bytes: None,
) -> Transferred:
    """Copy the finished cache in the folder `cache` to `<root>/<fingerprint>/`; `work` is where its lock lies.

    First every local file is verified by SHA-256. Then `workers` threads copy, each a shard at a time, the shard's
    manifest after its files, the root's manifest.json after everything, when the store's listing shows every file with
    its size. `begun(task, bytes)` is called for the two tasks, `advanced(bytes)` for each file verified and each shard
    copied or found there, in the calling thread; what it raises ends the push. Killed at any moment, a push leaves a
    root that readers refuse, and the next one goes on.

    What is trusted without reading it back: that an upload that the store acknowledged arrived as it was sent, and so
    that a shard whose manifest is there, equal to ours, came whole when its files have the recorded sizes. Files beside
    the shards are read back. `verify` trusts nothing: every file that was there is read back and compared by SHA-256, and
    replaced where it differs.

    Raises what `verify_cache` raises for a cache that is not whole, `MismatchError` where another cache of the same
    fingerprint is there, `LockedError` where another process works on this cache, `RemoteError` where the store fails.
    """
    description, manifest = read_identity(cache)
    remote = root.below(description.fingerprint)
    work.mkdir(parents=True, exist_ok=True)
    with lock(work, description.fingerprint):
        size = sum(record.size for record in manifest.files.values())
        begun("verify", size)
        verify_cache(cache, progress=lambda _name, file_size: advanced(file_size))
        finished = refuse_another(remote, manifest)
        there = remote.sizes()
        moved = 0
        begun("upload", size)

        def copy(group: Group) -> int:
            return copy_group(cache, remote, group, there, verify=verify)

        def count(group: Group, sent: int) -> None:
            nonlocal moved
            moved += sent
            advanced(group.size)

        for_each(groups(manifest.files), copy, count, workers=workers)
        refuse_unfinished(remote, manifest.files)
        if not finished:
            remote.upload(cache / MANIFEST_FILE, MANIFEST_FILE)
    return Transferred(
        fingerprint=description.fingerprint,
        root_digest=manifest.root_digest,
        files=len(manifest.files) + 1,
        bytes=size,
        moved=moved,
    )
