"""Fetching a cache from a remote root: verified file by file, published whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from storage.errors import MismatchError
from storage.files import (
    TEMPORARY,
    discard,
    move_folder,
    remove_temporaries,
    sync_tree,
    write_durably,
    writing,
)
from storage.layout import Split
from storage.locking import lock
from storage.manifest import CACHE_FILE, MANIFEST_FILE, FileRecord
from storage.remote.folder import RemoteFolder
from storage.remote.push import Advanced, Begun, Transferred
from storage.remote.root import WORKERS, Identity, for_each
from storage.taken_back import make_room

AGAIN = "`pipeline cache pull` goes on from here"


def pull(
    root: RemoteFolder,
    fingerprint: str,
    cache: Path,
    work: Path,
    *,
    splits: Collection[Split] = (),
    root_digest: str | None = None,
    workers: int = WORKERS,
    begun: Begun = lambda _task, _bytes: None,
    advanced: Advanced = lambda _bytes: None,
) -> Transferred:
    """Fetch the cache `<root>/<fingerprint>/` and put it in place at the folder `cache`.

    Files are fetched by `workers` threads into `<work>/pull-<fingerprint>/`, each under a temporary name until its size
    and SHA-256 are right; then the whole is made durable and renamed. What an earlier pull left there, and what `cache`
    already holds, is used where its SHA-256 is right. `begun(task, bytes)` says how much there is, `advanced(bytes)`
    is called in the calling thread after each file, fetched or there; what it raises ends the pull, and the next one
    goes on.

    `splits`: only these; the result is a cache of its own, with the same fingerprint and another root digest.
    `root_digest`: what the cache must have. Another cache at `cache` goes to `<work>/<its fingerprint>`, where
    `cache-teacher` finds it again; the same one is replaced.

    Raises `IncompleteError`, `CorruptError` and `FormatError` for a remote cache that is not whole, `MismatchError` for
    another than the expected one, `LockedError` where another process works on this cache, `RemoteError` where the store
    fails, `WriteError` where the disk here is full or read-only.
    """
    remote = root.below(fingerprint)
    identity = Identity.fetch(remote, root_digest)
    if identity.manifest.fingerprint != fingerprint:
        raise MismatchError(
            f"{remote.shown(MANIFEST_FILE)} is of cache {identity.manifest.fingerprint}; expected {fingerprint}, as its folder "
            "is called; move it to where it belongs, or remove it"
        )
    if splits:
        identity = identity.only(splits)
    work.mkdir(parents=True, exist_ok=True)
    folder = work / f"pull-{fingerprint}"
    with lock(work, fingerprint), writing("the pulled cache", folder):
        moved = _Pull(remote, identity, cache, folder).run(workers, begun, advanced)
    files = identity.manifest.files
    return Transferred(
        fingerprint=fingerprint,
        root_digest=identity.manifest.root_digest,
        files=len(files) + 1,
        bytes=identity.size,
        moved=moved,
    )


class _Pull:
    """One pull under its lock."""

    def __init__(self, remote: RemoteFolder, identity: Identity, cache: Path, folder: Path) -> None:
        self._remote, self._identity, self._cache, self._folder = remote, identity, cache, folder
        self._files = identity.manifest.files

    def run(self, workers: int, begun: Begun, advanced: Advanced) -> int:
        """Fetch what is not there and publish; the bytes that went over the wire."""
        begun("download", self._identity.size)
        moved = 0

        def count(name: str, fetched: int) -> None:
            nonlocal moved
            moved += fetched
            advanced(self._files[name].size)

        if self._is_published(workers):
            for name in self._files:
                count(name, 0)
            return 0
        self._folder.mkdir(exist_ok=True)
        self._remove_strangers()
        self._write(CACHE_FILE, self._identity.description_bytes)  # not the remote one where splits are left out
        for_each(self._files, self._fetch, count, workers=workers)
        self._write(MANIFEST_FILE, self._identity.manifest_bytes)
        sync_tree(self._folder)
        self._publish()
        return moved

    def _is_published(self, workers: int) -> bool:
        """Whether this very cache is in place, every byte of it."""
        try:
            if (self._cache / MANIFEST_FILE).read_bytes() != self._identity.manifest_bytes:
                return False
        except OSError:
            return False
        damaged: list[str] = []

        def note(name: str, damage: str | None) -> None:
            if damage is not None:
                damaged.append(name)

        def look(name: str) -> str | None:
            return self._files[name].damage(self._cache / name, digest=True)

        for_each(self._files, look, note, workers=workers)
        return not damaged

    def _remove_strangers(self) -> None:
        """Remove what an earlier pull with other splits, or a killed one, left: the cache holds its own files only."""
        for path in list(self._folder.rglob("*")):
            if not path.is_dir() and path.relative_to(self._folder).as_posix() not in self._files:
                path.unlink()

    def _fetch(self, name: str) -> int:
        record, target = self._files[name], self._folder / name
        if record.damage(target, digest=True) is None:
            return 0
        if record.damage(self._cache / name, digest=True) is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{TEMPORARY}{target.name}")
            shutil.copyfile(self._cache / name, temporary)
            temporary.replace(target)
            return 0
        self._remote.download(name, record, target)
        return record.size

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        if not path.is_file() or FileRecord.of_file(path) != FileRecord.of_bytes(data):
            write_durably(path, data)

    def _publish(self) -> None:
        """Move away what lies at the destination, and the pulled folder there."""
        work, fingerprint = self._folder.parent, self._identity.manifest.fingerprint
        replaced = work / f"{TEMPORARY}replaced-{fingerprint}"
        discard(replaced)
        make_room(self._cache, replaced, work, fingerprint, AGAIN)
        move_folder(self._folder, self._cache)
        discard(replaced)
        remove_temporaries(work, f"discarded-{replaced.name.removeprefix(TEMPORARY)}")
