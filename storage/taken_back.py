"""What is known of a finished cache that was taken back into its work folder, to be made whole and put back.

A root manifest vouches for every file, also for the shards' manifests; a work folder has none, since until it is finished
nothing may be vouched for. So what the root manifest said is kept beside the work folder, in `<fingerprint>.before.json`,
until the cache is finished again: a shard whose manifest was changed together with its files is still found, and a repair
can say whether the root digest is the one from before. Both survive a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from storage.description import CacheDescription
from storage.errors import CacheError, LockedError, MismatchError
from storage.files import discard, link_tree, move_folder, write_durably
from storage.layout import FORMAT_VERSION, ShardId
from storage.locking import lock
from storage.manifest import (
    CACHE_FILE,
    MANIFEST_FILE,
    FileRecord,
    Files,
    RootManifest,
    json_file,
    manifest_file,
    shard_folder,
)

_FINISHED = ".finished"


@dataclass(frozen=True)
class Before:
    """The root digest of a cache that was taken back (None: nothing is known), and the digests of its shard manifests."""

    root_digest: str | None = None
    manifests: dict[str, str] = field(default_factory=dict)
    """SHA-256 (hex) by path in the cache."""

    @classmethod
    def of(cls, manifest: RootManifest) -> Before:
        """What a root manifest says."""
        digests = {name: record.sha256 for name, record in manifest.files.items() if name.startswith("manifest/")}
        return cls(manifest.root_digest, digests)

    @classmethod
    def read(cls, root: Path, fingerprint: str) -> Before:
        """What was kept beside the work folder; nothing where no cache was taken back, or where the file is damaged."""
        try:
            value = json.loads(_file(root, fingerprint).read_bytes())
            return cls(str(value["root_digest"]), {str(name): str(sha) for name, sha in value["manifests"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, root: Path, fingerprint: str) -> None:
        """Keep it beside the work folder."""
        content = {"root_digest": self.root_digest, "manifests": self.manifests}
        write_durably(_file(root, fingerprint), json_file(content))

    @staticmethod
    def forget(root: Path, fingerprint: str) -> None:
        """The cache is finished again: its root manifest vouches for it."""
        _file(root, fingerprint).unlink(missing_ok=True)

    def allows(self, name: str, data: bytes) -> bool:
        """Whether `data` may be the shard manifest called `name`."""
        return name not in self.manifests or self.manifests[name] == FileRecord.of_bytes(data).sha256

    def without(self, name: str) -> Before:
        """The same, with nothing said about one shard manifest: it was made anew on purpose."""
        return Before(self.root_digest, {key: sha for key, sha in self.manifests.items() if key != name})


def read_root_manifest(folder: Path) -> RootManifest | None:
    """The root manifest of the cache in `folder`; None where there is none that can be believed."""
    try:
        return RootManifest.from_bytes((folder / MANIFEST_FILE).read_bytes())
    except (OSError, CacheError):
        return None


def dismiss_manifest(folder: Path, root: Path, fingerprint: str) -> None:
    """Make the finished cache in `folder` an unfinished one, and keep below `root` what its root manifest said."""
    manifest = read_root_manifest(folder)
    if manifest is not None and manifest.fingerprint == fingerprint:
        Before.of(manifest).write(root, fingerprint)
    (folder / MANIFEST_FILE).unlink(missing_ok=True)


def fingerprint_at(folder: Path) -> str | None:
    """The fingerprint of the cache in `folder`; None where there is none, or one that this version does not read.

    Where cache.json is damaged, the root manifest says it, and where that is damaged too, the shards.
    """
    try:
        return CacheDescription.from_bytes((folder / CACHE_FILE).read_bytes()).fingerprint
    except (OSError, CacheError):
        manifest = read_root_manifest(folder)
    if manifest is not None:
        return None if _is_newer(folder, manifest) else manifest.fingerprint
    return fingerprint_in_shards(folder)


def _is_newer(folder: Path, manifest: RootManifest) -> bool:
    """Whether cache.json is just what the manifest says: then it is not damaged, but of another version."""
    record = manifest.files.get(CACHE_FILE)
    return record is not None and record.damage(folder / CACHE_FILE, digest=True) is None


def fingerprint_in_shards(folder: Path) -> str | None:
    """The fingerprint that all shards of this format version in `folder` say they belong to, if it is one."""
    found = set(_fingerprints_in_shards(folder))
    return found.pop() if len(found) == 1 else None


def _fingerprints_in_shards(folder: Path) -> Iterator[str]:
    for file in (folder / "shards").glob("*/zarr.json"):
        try:
            attributes = json.loads(file.read_bytes())["attributes"]
            if attributes["format_version"] == FORMAT_VERSION:
                yield str(attributes["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):  # damaged as well: another shard will say it
            continue


def adopt_shards(source: Path, target: Path, shards: list[ShardId]) -> None:
    """Move those shards of the cache in `source` that the one in `target` lacks; a kill in between loses none."""
    for shard in shards:
        for name in (shard_folder(shard), manifest_file(shard)):  # files first: a manifest vouches for them
            if (source / name).exists() and not (target / name).exists():
                move_folder(source / name, target / name)


def make_room(destination: Path, replaced: Path, root: Path, fingerprint: str, again: str) -> None:
    """Move away what lies where the cache `fingerprint` is to be put.

    The same cache goes to `replaced`, another one to `<root>/<its fingerprint>`, where `cache-teacher` finds it again. Raises
    `MismatchError`, saying what to do before `again`, for what is no cache and where that place is taken.
    """
    if not destination.exists():
        return
    if destination.is_dir() and not any(destination.iterdir()):
        destination.rmdir()
        return
    found = fingerprint_at(destination)
    if found is None:
        raise MismatchError(f"{destination} holds no teacher cache that this version reads; move it away, then {again}")
    if found == fingerprint:
        discard(replaced)
        move_folder(destination, replaced)
        return
    home = root / found
    with lock(root, found):
        if home.exists() and not (destination / MANIFEST_FILE).is_file():
            raise MismatchError(
                f"{destination} is unfinished, and {home} is a work folder of the same cache; remove one, then {again}"
            )
        discard(home)
        move_folder(destination, home)


def linked_copy(root: Path, fingerprint: str) -> Path:
    """Where `keep_linked` keeps a finished cache."""
    return root / f"{fingerprint}{_FINISHED}"


def keep_linked(folder: Path, root: Path, fingerprint: str) -> None:
    """Keep the complete cache in `folder` below `root` as well, by hard links, until another one is kept.

    DVC removes an output before it runs the stage again. So a cache that was finished, and that DVC was still hashing when it was
    killed (20 minutes per terabyte), would be computed once more.
    """
    kept = linked_copy(root, fingerprint)
    link_tree(folder, kept)
    for other in root.glob(f"*{_FINISHED}"):
        if other != kept:
            with suppress(LockedError), lock(root, other.name.removesuffix(_FINISHED)):
                discard(other)


def set_aside(folder: Path, belongs: Files, aside: Path) -> list[str]:
    """Move every file of `folder` that is not one of `belongs` below `aside`; their names."""
    strangers = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and path.relative_to(folder).as_posix() not in belongs
    ]
    for name in strangers:
        discard(aside / name)
        move_folder(folder / name, aside / name)
        _remove_empty(folder, (folder / name).parent)
    return strangers


def _remove_empty(folder: Path, below: Path) -> None:
    while below not in (folder, folder / "shards", folder / "manifest") and not any(below.iterdir()):
        below.rmdir()
        below = below.parent


def _file(root: Path, fingerprint: str) -> Path:
    return root / f"{fingerprint}.before.json"


def root_digest_before(folder: Path, root: Path, fingerprint: str) -> str | None:
    """The root digest that the cache had: of the finished one in `folder`, or of one that was taken back; None: unknown."""
    manifest = read_root_manifest(folder)
    if manifest is not None and manifest.fingerprint == fingerprint:
        return manifest.root_digest
    return Before.read(root, fingerprint).root_digest
