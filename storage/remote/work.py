"""Writing a cache to a remote root: each shard is published locally, sent whole, and its arrays are removed here.

What lies at the root is the record of progress: a job that restarts on an empty machine computes only what is missing there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.description import CacheDescription
from storage.errors import CorruptError, IncompleteError, MismatchError, RemoteError
from storage.files import discard, remove_temporaries, write_durably, writing
from storage.identity import differing_fields
from storage.layout import ShardId
from storage.manifest import (
    MANIFEST_FILE,
    FileRecord,
    RootManifest,
    ShardManifest,
    ShardSummary,
    group_file,
    manifest_file,
    shard_folder,
)
from storage.part import Part
from storage.remote.copying import Group, copy_group, groups, refuse_another, refuse_unfinished, wrong_size
from storage.remote.folder import RemoteFolder
from storage.remote.root import Identity, for_each, manifest_at
from storage.taken_back import Before
from storage.work import CacheWork, Looked, Report

UPLOADS = 4
"""Shards that are sent at the same time; with the one that is being written, all that lies here."""
AGAIN = "`pipeline cache-teacher` goes on from here"


def finished_at(root: RemoteFolder, description: CacheDescription) -> RootManifest | None:
    """What the described cache consists of, where it is finished at the root and a listing shows every file with its size.

    Raises `MismatchError` where a part of it is finished there, and as `Identity.fetch` does.
    """
    remote = root.below(description.fingerprint)
    try:
        identity = Identity.fetch(remote)
    except IncompleteError:
        return None
    _refuse_part(remote, identity.manifest, description)
    return None if wrong_size(identity.manifest.files, remote.sizes()) else identity.manifest


def _refuse_part(remote: RemoteFolder, manifest: RootManifest, description: CacheDescription) -> None:
    if description.splits.keys() - manifest.counts.keys():
        raise MismatchError(
            f"{remote.shown()} is a cache of {', '.join(manifest.counts)} only; expected {', '.join(description.splits)}; "
            "write to another root, or remove that one"
        )


class RemoteWork(CacheWork):
    """The unfinished cache at `<root>/<fingerprint>`, and the shards under way to it in a work folder. Made by `open_at`.

    The lock holds in this work folder; that no other one writes the same cache to the same root is for its user to see to,
    unless each does a part of it.
    """

    def __init__(
        self,
        remote_root: RemoteFolder,
        root: Path,
        description: CacheDescription,
        uploaded: Looked,
        *,
        verify: bool,
        part: Part | None = None,
    ) -> None:
        super().__init__(root, description, part)
        self._remote = remote_root.below(description.fingerprint)
        self._read_back = verify
        self._there: Mapping[str, int] = {}
        self._finished: RootManifest | None = None
        self._damaged: dict[ShardId, str] = {}
        self._uploads = _Uploads(self._send, uploaded)

    @classmethod
    @contextmanager
    def open_at(
        cls,
        remote_root: RemoteFolder,
        root: Path,
        description: CacheDescription,
        uploaded: Looked = lambda _shard: None,
        *,
        verify: bool = False,
        part: Part | None = None,
    ) -> Iterator[RemoteWork]:
        """The described cache at a remote root, begun or resumed; `<root>/<fingerprint>` is the work folder here.

        `uploaded` is told of a shard once it is there. With `verify`, `missing` reads back all that is there; with a `part`,
        it is as in `CacheWork.open`. When the context ends, uploads that run are waited for and others are dropped.

        Raises as `CacheWork.open`; all that uploads or lists raises `RemoteError`, naming the shard, where the store fails.
        """
        work = cls(remote_root, root, description, uploaded, verify=verify, part=part)
        with work._held(), work._uploads:
            yield work

    @property
    def kept_in(self) -> str:
        """Where the finished shards are safe, for messages."""
        return self._remote.shown()

    def missing(self, report: Report | None = None, looked: Looked | None = None) -> list[ShardId]:
        """The shards that are to be computed: neither whole at the root nor whole here. The latter begin to be sent.

        Without `verify` a shard is trusted at the root whose manifest is there, with zarr.json as it says, of this plan, and every
        file at its size. Where the cache is finished there, its manifest.json must vouch for the manifests of shards, those
        that lie here too.

        Raises `MismatchError` where a part of the cache is finished there.
        """
        self._uploads.settle()
        self._verified.clear()
        self._damaged.clear()
        self._there = self._remote.sizes()
        self._finished = manifest_at(self._remote)
        if self._finished is not None:
            _refuse_part(self._remote, self._finished, self.description)
            self._before = Before.of(self._finished)

        tell = looked or (lambda _shard: None)

        def note(shard: ShardId, found: tuple[ShardManifest, bytes] | str | None) -> None:
            if isinstance(found, tuple):
                self._take_over(*found)
                tell(shard)
            elif found is not None:
                self._damaged[shard] = found

        shards = self.shards
        for_each(shards, self._look, note)
        missing = []
        for shard in [shard for shard in shards if shard not in self._verified]:
            if self._is_whole(shard, None if shard in self._damaged else report):
                self._uploads.add(shard)
            else:
                missing.append(shard)
                if report is not None and shard in self._damaged:
                    report(shard, self._damaged[shard])
            tell(shard)
        return missing

    def _stored(self, shard: ShardId) -> None:
        """The shard begins to be sent, once no more than `UPLOADS` others are under way.

        Raises what went wrong with one that was under way. (Where the cache is finished there with another such shard,
        `_comes_out_otherwise` has raised before.)
        """
        self._uploads.add(shard)
        self._uploads.settle(UPLOADS)

    def finish_part(self) -> None:
        """Wait until this part's shards are at the root."""
        self._uploads.settle()

    def finish(self, destination: Path) -> str:
        """Send what is beside the shards and, last of all, manifest.json; its root digest.

        Here remains a copy of manifest.json, in the file `destination`. Raises `IncompleteError` while something is missing,
        `MismatchError` where another cache of the same fingerprint was finished there, which stays as it is.
        """
        self._uploads.settle()
        manifest = self._root_manifest()
        finished = refuse_another(self._remote, manifest)
        there = self._remote.sizes()
        for group in groups(manifest.files):
            if group.shard is None:
                copy_group(self.folder, self._remote, group, there, verify=False)
        refuse_unfinished(self._remote, manifest.files)
        with writing(MANIFEST_FILE, destination.parent):
            write_durably(self.folder / MANIFEST_FILE, manifest.to_bytes())
            if not finished:
                self._remote.upload(self.folder / MANIFEST_FILE, MANIFEST_FILE)
            keep_manifest(manifest, destination)
            discard(self.folder)
            remove_temporaries(self.root, self.description.fingerprint)
            Before.forget(self.root, self.description.fingerprint)
        return manifest.root_digest

    def _look(self, shard: ShardId) -> tuple[ShardManifest, bytes] | str | None:
        """The manifest of a shard that is whole at the root and its bytes; or what is wrong there; None where it is not."""
        name, group = manifest_file(shard), group_file(shard)
        data = self._remote.read(name) if name in self._there else None
        if data is None:
            return None
        try:
            manifest = ShardManifest.from_bytes(shard, data)
        except CorruptError as error:
            return f"{self._remote.shown()}: {error}"
        if self._finished is not None and self._finished.files.get(name) != FileRecord.of_bytes(data):
            return f"{self._remote.shown(name)} is not the one that {MANIFEST_FILE} there vouches for"
        wrong = wrong_size(manifest.files, self._there)
        if wrong is not None:
            return f"{self._remote.shown(wrong[0])} {wrong[1]}; expected {manifest.files[wrong[0]].size}"
        metadata = self._remote.read(group) or b""
        if manifest.files.get(group) != FileRecord.of_bytes(metadata) or not self._is_planned(manifest, metadata):
            return f"{self._remote.shown(group)} is of another shard or another cache"
        for file, record in manifest.files.items() if self._read_back else ():
            found = self._remote.record(file)
            if found != record:
                what = "is missing" if found is None else f"has SHA-256 {found.sha256[:12]}..."
                return f"{self._remote.shown(file)} {what}; expected {record.sha256[:12]}..."
        return manifest, data

    def _take_over(self, manifest: ShardManifest, data: bytes) -> None:
        """Count a shard at the root as done; what lies here of it goes."""
        shard = manifest.shard
        with writing(f"shard {shard}", self.folder):
            (self.folder / manifest_file(shard)).write_bytes(data)
            discard(self.folder / shard_folder(shard))
        self._verified[shard] = manifest.summary

    def _send(self, shard: ShardId) -> None:
        """Upload a shard that is whole here, and remove its arrays; its manifest stays."""
        name, manifest = manifest_file(shard), self._verified[shard]
        files = {**manifest.files, name: FileRecord.of_file(self.folder / name)}
        try:
            # The manifest of a damaged shard may be ours, so it must not vouch for what is there.
            copy_group(self.folder, self._remote, Group(shard, files), self._there, verify=shard in self._damaged)
            refuse_unfinished(self._remote, manifest.files, below=shard_folder(shard))
        except RemoteError as error:
            raise RemoteError(f"shard {shard}: {error}") from error
        with writing(f"shard {shard}", self.folder):
            discard(self.folder / shard_folder(shard))

    def _comes_out_otherwise(self, manifest: ShardManifest) -> None:
        """Raise `MismatchError` where the cache is finished there: its manifest.json would no longer be true."""
        if self._finished is None:
            super()._comes_out_otherwise(manifest)
            return
        shard, name = manifest.shard, manifest_file(manifest.shard)
        found, expected = FileRecord.of_bytes(manifest.to_bytes()), self._finished.files[name]
        there = self._remote.read(name)
        fields: tuple[str, ...] = ()
        if there is not None and FileRecord.of_bytes(there) == expected:
            computed_with = ShardManifest.from_bytes(shard, there).computed_with
            fields = differing_fields(computed_with, manifest.computed_with, found_in="here")
        with writing(f"shard {shard}", self.folder):
            self._remove(shard)
        raise MismatchError(
            f"shard {shard} comes out with other bytes than in the finished cache at {self._remote.shown()}: its manifest has "
            f"SHA-256 {found.sha256[:12]}..., expected {expected.sha256[:12]}... ({'; '.join(fields) or 'computed otherwise'}); "
            "that shard was not changed there; run `pipeline cache-teacher` as and where that cache was made, or write to another root",
            fields,
        )

    def _refuse_damaged(self, summary: ShardSummary) -> None:
        """Nothing: the shard is no longer here. What the root's listing shows is compared before manifest.json is sent."""


def keep_manifest(manifest: RootManifest, file: Path) -> None:
    """Write what a cache at a remote root consists of to a file here, where DVC tracks it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, manifest.to_bytes())


class _Uploads:
    """Sends shards in the background; what goes wrong is raised where the caller settles."""

    def __init__(self, send: Callable[[ShardId], None], uploaded: Looked) -> None:
        self._send, self._uploaded = send, uploaded
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
        self._under_way: dict[Future[None], ShardId] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, shard: ShardId) -> None:
        """Begin to send a shard, or let it wait for its turn."""
        self._under_way[self._pool.submit(self._send, shard)] = shard

    def settle(self, left: int = 0) -> None:
        """Wait until no more than `left` are under way. Raises the error of one that failed."""
        self._collect(timeout=0)
        while len(self._under_way) > left:
            self._collect(timeout=None)

    def _collect(self, timeout: float | None) -> None:
        for future in wait(self._under_way, timeout, FIRST_COMPLETED).done:
            shard = self._under_way.pop(future)
            future.result()
            self._uploaded(shard)
