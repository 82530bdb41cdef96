"""Copying a finished cache to a remote root, shard by shard, manifest.json last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import MismatchError, RemoteError
from storage.layout import ShardId
from storage.locking import lock
from storage.manifest import MANIFEST_FILE, Files, RootManifest, manifest_file
from storage.reader import read_identity
from storage.remote.folder import RemoteFolder
from storage.remote.root import WORKERS, for_each, shard_of
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


@dataclass(frozen=True)
class _Group:
    """Files that are vouched for together: those of a shard by its manifest; those beside the shards by nobody."""

    shard: ShardId | None
    files: Files

    @property
    def size(self) -> int:
        return sum(record.size for record in self.files.values())


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
        finished = _refuse_another(remote, manifest)
        there = remote.sizes()
        moved = 0
        begun("upload", size)

        def copy(group: _Group) -> int:
            return _copy_group(cache, remote, group, there, verify=verify)

        def count(group: _Group, sent: int) -> None:
            nonlocal moved
            moved += sent
            advanced(group.size)

        for_each(_groups(manifest.files), copy, count, workers=workers)
        _refuse_unfinished(remote, manifest.files)
        if not finished:
            remote.upload(cache / MANIFEST_FILE, MANIFEST_FILE)
    return Transferred(
        fingerprint=description.fingerprint,
        root_digest=manifest.root_digest,
        files=len(manifest.files) + 1,
        bytes=size,
        moved=moved,
    )


def _groups(files: Files) -> Iterator[_Group]:
    grouped: dict[ShardId | None, Files] = {}
    for name, record in files.items():
        grouped.setdefault(shard_of(name), {})[name] = record
    yield from (_Group(shard, members) for shard, members in grouped.items())


def _refuse_another(remote: RemoteFolder, manifest: RootManifest) -> bool:
    """Whether this very cache is already finished there. Raises `MismatchError` for another of the same fingerprint."""
    data = remote.read(MANIFEST_FILE)
    if data is None:
        return False
    if data != manifest.to_bytes():
        raise MismatchError(
            f"{remote.shown(MANIFEST_FILE)} is of another cache with the same fingerprint (made on another device, or of "
            f"other splits), and this one has root digest {manifest.root_digest[:12]}...; "
            "push to another root, or take that one with `pipeline cache pull`"
        )
    return True


def _copy_group(cache: Path, remote: RemoteFolder, group: _Group, there: Mapping[str, int], *, verify: bool) -> int:
    """Bring the files of a group there, the one that vouches for the others last; the bytes that were sent."""
    voucher = None if group.shard is None else manifest_file(group.shard)
    vouched_for = False
    if voucher is not None and voucher in there:
        vouched_for = remote.record(voucher) == group.files[voucher]
        if not vouched_for:  # another cache's: it must not vouch for what we put there
            remote.remove(voucher)
    sent = 0
    for name, record in sorted(group.files.items(), key=lambda item: item[0] == voucher):
        whole = there.get(name) == record.size
        if whole and (verify or not vouched_for):
            # Of a shard that nobody vouches for, reading back costs as much as sending again.
            whole = (verify or group.shard is None) and remote.record(name) == record
        if not whole:
            remote.upload(cache / name, name)
            sent += record.size
    return sent


def _refuse_unfinished(remote: RemoteFolder, files: Files) -> None:
    there = remote.sizes()
    for name, record in files.items():
        if there.get(name) != record.size:
            found = f"holds {there[name]} bytes" if name in there else "is missing"
            raise RemoteError(
                f"{remote.shown(name)} {found} after it was sent; expected {record.size}: something else writes there; {AGAIN}"
            )
