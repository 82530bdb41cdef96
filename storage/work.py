"""Writing a cache: a work folder under a lock, shards published whole, the finished cache renamed into place.

A process may be killed at any moment: what it leaves is a whole shard, rubbish under a `.tmp-` name, or a shard without
a manifest; each is recognised and redone (FORMAT.md, section 8). The files on disk are the only record of progress.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from storage.description import CacheDescription
from storage.errors import CorruptError, FormatError, IncompleteError, MismatchError
from storage.files import (
    TEMPORARY,
    copy_tree,
    discard,
    move_folder,
    remove_temporaries,
    write_durably,
    writing,
)
from storage.identity import differing_fields
from storage.layout import ShardId
from storage.locking import lock, publishing
from storage.manifest import (
    CACHE_FILE,
    MANIFEST_FILE,
    FileRecord,
    Files,
    RootManifest,
    ShardManifest,
    ShardSummary,
    damages,
    files_below,
    group_file,
    json_file,
    manifest_file,
    sum_of_counts,
)
from storage.part import Part
from storage.publication import ShardPublisher
from storage.taken_back import (
    Before,
    adopt_shards,
    dismiss_manifest,
    fingerprint_at,
    fingerprint_in_shards,
    make_room,
    set_aside,
)

AGAIN = "run `pipeline cache-teacher` again"
Report = Callable[[ShardId, str], None]
"""Is told of a damaged shard and what is wrong with it."""
Looked = Callable[[ShardId], None]
"""Is called in the calling thread, once for each shard; what it raises ends the work."""


def required_files(description: CacheDescription) -> tuple[str, ...]:
    """What a finished cache holds beside its shards: its tokenizer and, unless it is of a downstream task, the teacher's LM head."""
    return ("tokenizer",) if description.task is not None else ("head.json", "head.safetensors", "tokenizer")


class CacheWork(ShardPublisher):
    """The unfinished cache in `<root>/<fingerprint>`. Made by `open`."""

    def __init__(self, root: Path, description: CacheDescription, part: Part | None = None) -> None:
        super().__init__(root, description)
        self.part = part
        self._verified: dict[ShardId, ShardSummary] = {}
        self._before = Before()

    @classmethod
    @contextmanager
    def open(cls, root: Path, description: CacheDescription, part: Part | None = None) -> Iterator[CacheWork]:
        """The work folder of the described cache, begun or resumed, held until the context ends.

        With a `part`, it is held together with those that do the other parts, each to be done once at a time, and `missing`
        gives this part's shards only; to take back and to finish is left to who holds it alone.

        Raises `LockedError` where another process holds it, `MismatchError` where it was begun with another
        description, and, as all that writes, `WriteError` where the disk is full or nothing may be written.
        """
        work = cls(root, description, part)
        with work._held():
            yield work

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Begin or resume the work folder and hold its lock."""
        with ExitStack() as held:
            with writing("the work folder", self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                name = self.description.fingerprint
                held.enter_context(lock(self.root, name, shared=self.part is not None))
                if self.part is not None:
                    held.enter_context(lock(self.root, f"{name}.{self.part.name}", f"part {self.part} of the cache"))
                with publishing(self.root, name):
                    if self.part is None:
                        self._sweep()
                    self._begin()
            yield

    @property
    def shards(self) -> list[ShardId]:
        """The shards that are to be seen to, in order: all, or this part's."""
        shards = self.description.shard_ids()
        return shards if self.part is None else self.part.of_all(shards)

    @property
    def kept_in(self) -> str:
        """Where the finished shards are safe, for messages."""
        return str(self.folder)

    def _sweep(self) -> None:
        """Remove what killed processes left, and what a root manifest says that is to be written anew."""
        remove_temporaries(self.root, self.description.fingerprint)
        remove_temporaries(self.root, f"discarded-{self.description.fingerprint}")
        for folder in (self.folder, self.folder / "shards", self.folder / "manifest"):
            remove_temporaries(folder)
        dismiss_manifest(self.folder, self.root, self.description.fingerprint)

    def _begin(self) -> None:
        for folder in (self.folder, self.folder / "shards", self.folder / "manifest"):
            folder.mkdir(exist_ok=True)
        self._before = Before.read(self.root, self.description.fingerprint)
        file = self.folder / CACHE_FILE
        try:
            found = CacheDescription.from_bytes(file.read_bytes())
        except (FileNotFoundError, CorruptError, FormatError) as error:
            # The folder's name says which cache it is, and each shard says so too: a damaged file is written anew.
            if isinstance(error, FormatError) and fingerprint_in_shards(self.folder) != self.description.fingerprint:
                raise
            write_durably(file, json_file(self.description.to_json()))
            return
        if found.is_part_of(self.description):  # `pipeline cache pull --split`: it is completed
            write_durably(file, json_file(self.description.to_json()))
            return
        fields = differing_fields(self.description.to_json(), found.to_json(), found_in="in that folder")
        if fields:
            raise MismatchError(
                f"{self.folder} was begun with another description ({'; '.join(fields)}); "
                "remove that folder to start it over",
                fields,
            )

    def take_back(self, destination: Path) -> bool:
        """Go on from the same cache where it already lies, whole or damaged, at `destination`; True where it does.

        Its shards are then verified by `missing` like any others, also against what its root manifest said, and
        `finish` puts it back.
        """
        if fingerprint_at(destination) != self.description.fingerprint:
            return False
        name = self.description.fingerprint
        with writing("the cache that was taken back", self.folder), publishing(self.root, name):
            if any((self.folder / "manifest").iterdir()):  # shards of an earlier run: the two complete each other
                dismiss_manifest(destination, self.root, name)
                adopt_shards(destination, self.folder, self.description.shard_ids())
            else:
                discard(self.folder)
                move_folder(destination, self.folder)
            self._sweep()
            self._begin()
        return True

    def reject(self, shard: ShardId) -> None:
        """Remove a shard that is as its manifest says and yet not fit to be read, so that it is computed again."""
        with publishing(self.root, self.description.fingerprint):
            self._remove(shard)
        self._expect_no_longer(shard)

    def add_folder(self, name: str, source: Path) -> None:
        """Put a copy of a folder such as the tokenizer's into the cache."""
        path = self.folder / name
        if path.is_dir() and files_below(path, path) == files_below(source, source):
            return
        temporary = self.folder / f"{TEMPORARY}{name}"
        with writing(name, self.folder):
            discard(temporary)
            copy_tree(source, temporary)
            discard(path)
            move_folder(temporary, path)

    def missing(self, report: Report | None = None, looked: Looked | None = None) -> list[ShardId]:
        """The shards that are still to be computed, in order, after verifying size and SHA-256 of those that are there.

        A shard that is not as its manifest says is removed, and told to `report(shard, what is wrong)`. `looked` is told of
        each shard once it is known what is there of it: that takes as long as the cache is large.
        """
        self._verified.clear()
        missing = []
        for shard in self.shards:
            if not self._is_whole(shard, report):
                missing.append(shard)
            if looked is not None:
                looked(shard)
        return missing

    def _is_whole(self, shard: ShardId, report: Report | None) -> bool:
        """Whether the shard is there, verified; one that is damaged is removed and told to `report`."""
        if not (self.folder / manifest_file(shard)).exists():
            return False
        try:
            self._verified[shard] = self._verify(shard).summary
        except CorruptError as error:
            if report is not None:
                report(shard, str(error))
            with publishing(self.root, self.description.fingerprint):
                self._remove(shard)
            return False
        return True

    def _published(self, shard: ShardId) -> None:
        self.take_in(shard)

    def _leaves(self, shard: ShardId) -> bool:  # noqa: ARG002  whoever publishes here has looked; it takes the other's place
        return False

    def take_in(self, shard: ShardId) -> ShardManifest:
        """Count a shard as done that was published here, by this process or by one that works for it; its manifest.

        Raises `CorruptError` where it is not there, or a file of it not at its size.
        """
        manifest = self.find(shard)
        if manifest is None:
            # Network file systems remember for a while that a file was not there, but not beyond the next listing.
            for folder in ("manifest", "shards"):
                os.listdir(self.folder / folder)  # noqa: PTH208  what is needed is the call, not its result
            manifest = self.find(shard)
        if manifest is None:
            raise CorruptError(f"shard {shard} was published and is not whole in {self.folder}; {AGAIN}")
        if not self._before.allows(manifest_file(shard), manifest.to_bytes()):  # computed on another device, say
            self._comes_out_otherwise(manifest)
        self._verified[shard] = manifest.summary
        self._stored(shard)
        return manifest

    def _stored(self, shard: ShardId) -> None:
        """A shard is whole here: nothing more is to be done with it."""

    def finish(self, destination: Path) -> str:
        """Write manifest.json and rename the whole cache to `destination`; its root digest.

        Another cache at `destination` goes back to `<root>/<its fingerprint>`, from where it is finished again without
        computing; the same cache is replaced. Files that are no part of the cache are moved to `<root>/<fingerprint>.aside`.
        Raises `IncompleteError` while something is missing.
        """
        manifest = self._root_manifest()
        fingerprint = self.description.fingerprint
        with writing("the finished cache", destination), publishing(self.root, fingerprint):
            set_aside(self.folder, manifest.files, self.root / f"{fingerprint}.aside")
            write_durably(self.folder / MANIFEST_FILE, manifest.to_bytes())
            replaced = self.root / f"{TEMPORARY}{fingerprint}"
            make_room(destination, replaced, self.root, fingerprint, AGAIN)
            move_folder(self.folder, destination)
            Before.forget(self.root, fingerprint)
            discard(replaced)
            remove_temporaries(self.root, fingerprint)  # of a process that was killed while it worked for this one
            remove_temporaries(destination.parent, f"discarded-{destination.name}")
        return manifest.root_digest

    def finish_part(self) -> None:
        """Wait until this part's shards are where they are kept."""

    def _root_manifest(self) -> RootManifest:
        absent = [name for name in required_files(self.description) if not (self.folder / name).exists()]
        if absent:
            raise IncompleteError(f"{self.folder} has no {', '.join(absent)}; run `pipeline cache-teacher` again")
        files: Files = {}
        shard_counts: dict[str, list[dict[str, int]]] = {split: [] for split in self.description.splits}
        for shard in self.description.shard_ids():
            if not (self.folder / manifest_file(shard)).exists():
                raise IncompleteError(f"{self.folder} has no shard {shard}; run `pipeline cache-teacher` to resume")
            summary = self._verified.get(shard) or self._verify(shard)
            self._refuse_damaged(summary)
            files.update(summary.files)
            files[manifest_file(shard)] = FileRecord.of_file(self.folder / manifest_file(shard))
            shard_counts[shard.split].append(summary.counts)
        counts = {split: sum_of_counts(of_split) for split, of_split in shard_counts.items()}
        for split, description in self.description.splits.items():
            if counts[split]["tokens"] != description.tokens * description.variants:
                raise CorruptError(
                    f"the shards of {split} hold {counts[split]['tokens']} tokens; {CACHE_FILE} plans "
                    f"{description.tokens} in each of {description.variants} variants; "
                    f"remove {self.folder} and run `pipeline cache-teacher` again"
                )
        for name in (CACHE_FILE, *required_files(self.description)):
            path = self.folder / name
            files.update(files_below(self.folder, path) if path.is_dir() else {name: FileRecord.of_file(path)})
        return RootManifest(fingerprint=self.description.fingerprint, counts=counts, files=dict(sorted(files.items())))

    def _verify(self, shard: ShardId) -> ShardManifest:
        name = manifest_file(shard)
        data = (self.folder / name).read_bytes()
        manifest = ShardManifest.from_bytes(shard, data)
        damage = next(damages(self.folder, manifest.files, digest=True), None)
        if damage is not None:
            raise CorruptError(damage)
        if not self._before.allows(name, data):
            raise CorruptError(f"{name} is not the one that {MANIFEST_FILE} vouched for")
        metadata = group_file(shard)
        if metadata not in manifest.files or not self._is_planned(manifest, (self.folder / metadata).read_bytes()):
            raise CorruptError(f"{metadata} is of another shard or another cache")
        return manifest

    def _refuse_damaged(self, summary: ShardSummary) -> None:
        """Raise `CorruptError` where a shard that was whole is so no longer."""
        damage = next(damages(self.folder, summary.files, digest=False), None)
        if damage is not None:
            raise CorruptError(f"{self.folder}: {damage}; run `pipeline cache-teacher` to compute that shard again")

    def _remove(self, shard: ShardId) -> None:
        super()._remove(shard)
        self._verified.pop(shard, None)

    def _comes_out_otherwise(self, manifest: ShardManifest) -> None:
        """A shard has other bytes than the root manifest said: it counts all the same."""
        self._expect_no_longer(manifest.shard)

    def _expect_no_longer(self, shard: ShardId) -> None:
        """What the root manifest said of a shard is no reason to compute it once more after a kill."""
        name = manifest_file(shard)
        if name in self._before.manifests:
            self._before = self._before.without(name)
            self._before.write(self.root, self.description.fingerprint)
