"""Bringing the files of a cache to a remote folder: what push and a writer at a root have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import MismatchError, RemoteError
from storage.layout import ShardId
from storage.manifest import MANIFEST_FILE, Files, RootManifest, manifest_file
from storage.remote.folder import RemoteFolder
from storage.remote.root import manifest_at, shard_of


@dataclass(frozen=True)
class Group:
    """Files that are vouched for together: those of a shard by its manifest; those beside the shards by nobody."""

    shard: ShardId | None
    files: Files

    @property
    def size(self) -> int:
        return sum(record.size for record in self.files.values())


def groups(files: Files) -> Iterator[Group]:
    """The files of a cache by what vouches for them."""
    grouped: dict[ShardId | None, Files] = {}
    for name, record in files.items():
        grouped.setdefault(shard_of(name), {})[name] = record
    yield from (Group(shard, members) for shard, members in grouped.items())


def refuse_another(remote: RemoteFolder, manifest: RootManifest) -> bool:
    """Whether this very cache is already finished there. Raises `MismatchError` for another of the same fingerprint.

    A damaged manifest.json is none: no reader takes that cache, and this one may be put in its place.
    """
    there = manifest_at(remote)
    if there is None:
        return False
    if there.root_digest != manifest.root_digest:
        raise MismatchError(
            f"{remote.shown(MANIFEST_FILE)} is of another cache with the same fingerprint (made on another device, or of "
            f"other splits), and this one has root digest {manifest.root_digest[:12]}...; "
            "put it at another root, or take that one with `pipeline cache pull`"
        )
    return there == manifest  # the root digest is not that of the counts


def copy_group(cache: Path, remote: RemoteFolder, group: Group, there: Mapping[str, int], *, verify: bool) -> int:
    """Bring the files of a group there, the one that vouches for the others last; the bytes that were sent.

    `there`: the sizes that a listing showed. What a voucher that is ours vouches for is not sent again; with `verify` it is
    read back. Raises as `RemoteFolder` does.
    """
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


def refuse_unfinished(remote: RemoteFolder, files: Files, below: str = "") -> None:
    """Raise `RemoteError` unless the listing (of the folder `below`, where all of them lie) shows every file with its size."""
    found = wrong_size(files, remote.sizes(below))
    if found is not None:
        name, damage = found
        raise RemoteError(
            f"{remote.shown(name)} {damage} after it was sent; expected {files[name].size}: something else writes there; "
            f"{remote.again}"
        )


def wrong_size(files: Files, there: Mapping[str, int]) -> tuple[str, str] | None:
    """The first of `files` that a listing does not show with its size, and what it shows instead; None: all are there."""
    for name, record in files.items():
        if there.get(name) != record.size:
            return name, f"holds {there[name]} bytes" if name in there else "is missing"
    return None
