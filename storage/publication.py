"""Publishing shards into a work folder, for whoever works on it: its coordinator, or a process that works for it.

A shard is written under a name that nobody else uses, beside the work folder, and put into its place in a turn that one
process has at a time. So the same shard may be published twice, also at the same moment, also by a process that was given up
for lost and whose shard another one has done since, or whose work folder has become a finished cache.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import array_table
from storage.codecs import GAP_MAX
from storage.description import CacheDescription
from storage.errors import CorruptError, IncompleteError
from storage.files import TEMPORARY, discard, move_folder, sync_folder, sync_tree, write_durably, writing
from storage.layout import ShardId
from storage.locking import publishing
from storage.manifest import (
    CACHE_FILE,
    FileRecord,
    Files,
    ShardManifest,
    damages,
    group_file,
    manifest_file,
    shard_folder,
)
from storage.shard import digest_of_what_the_teacher_saw, shard_attributes, write_shard
from storage.targets import ShardTargets


class ShardPublisher:
    """Puts shards into the work folder `<root>/<fingerprint>`, which another process holds the lock of.

    It takes no lock of its own for longer than a rename, sweeps nothing, and leaves a shard alone that is there and whole.
    """

    def __init__(self, root: Path, description: CacheDescription) -> None:
        self.root = root
        self.description = description
        self.folder = root / description.fingerprint

    def find(self, shard: ShardId) -> ShardManifest | None:
        """The manifest of a shard that is there, every file of it at its size; None where it is to be computed."""
        try:
            manifest = ShardManifest.from_bytes(shard, (self.folder / manifest_file(shard)).read_bytes())
            group = (self.folder / group_file(shard)).read_bytes()
        except (FileNotFoundError, CorruptError):
            return None
        whole = self._is_planned(manifest, group) and not any(damages(self.folder, manifest.files, digest=False))
        return manifest if whole else None

    def add_file(self, name: str, data: bytes) -> None:
        """Put a file such as head.json into the cache."""
        path = self.folder / name
        if not path.is_file() or FileRecord.of_file(path) != FileRecord.of_bytes(data):
            with writing(name, self.folder), publishing(self.root, self.description.fingerprint):
                write_durably(path, data)

    def publish(
        self, shard: ShardId, targets: ShardTargets, computed_with: dict[str, Any], figures: dict[str, Any]
    ) -> int:
        """Check, encode and store the targets of one shard; the bytes written.

        `computed_with` records what may change the last bits, `figures` what is worth knowing of the shard; the number
        of saturated gaps is added to them. Raises `InvalidTargetsError` for targets that must not be stored.
        """
        layout = self.description.splits[shard.split].layout
        targets.check(self.description, shard, layout)
        arrays = targets.encode(self.description, layout)
        if "top_gap" in arrays:
            figures = {**figures, "saturated_gaps": int(np.count_nonzero(arrays["top_gap"] == GAP_MAX))}
        return self.store(shard, arrays, targets.counts, computed_with, figures)

    def store(
        self,
        shard: ShardId,
        arrays: Mapping[str, NDArray[Any]],
        counts: dict[str, int],
        computed_with: dict[str, Any],
        figures: dict[str, Any],
    ) -> int:
        """Store one shard of arrays that are checked and encoded already; the bytes written.

        Raises `IncompleteError` where the work folder is no longer there: the cache was finished without this process.
        """
        teacher_saw = digest_of_what_the_teacher_saw(arrays)
        with writing(f"shard {shard}", self.folder):
            temporary, written = self._write_temporary(
                shard, arrays, shard_attributes(self.description, shard, teacher_saw)
            )
            name = shard_folder(shard)
            manifest = ShardManifest(
                shard=shard,
                counts=counts,
                files={f"{name}/{file}": record for file, record in written.items()},
                teacher_saw=teacher_saw,
                computed_with=computed_with,
                figures=figures,
            )
            with publishing(self.root, self.description.fingerprint):
                self._put(temporary, manifest)
        self._published(shard)
        return shard_bytes(manifest)

    def _published(self, shard: ShardId) -> None:
        """A shard has its place: whoever coordinates the work is to be told by others."""

    def _put(self, temporary: Path, manifest: ShardManifest) -> None:
        """Give the files of a shard their place and write its manifest, unless that is done already."""
        shard = manifest.shard
        if not (self.folder / CACHE_FILE).is_file():
            discard(temporary)
            raise IncompleteError(
                f"{self.folder} is no longer there: shard {shard} comes too late; nothing was changed"
            )
        if self._leaves(shard):
            discard(temporary)
            return
        self._remove(shard)
        move_folder(temporary, self.folder / shard_folder(shard))
        write_durably(self.folder / manifest_file(shard), manifest.to_bytes())

    def _leaves(self, shard: ShardId) -> bool:
        """Whether the shard is left as it lies there."""
        return self.find(shard) is not None

    def _write_temporary(
        self, shard: ShardId, arrays: Mapping[str, NDArray[Any]], attributes: dict[str, Any]
    ) -> tuple[Path, Files]:
        unique = f"{shard}-{os.getpid()}-{secrets.token_hex(4)}"
        temporary = self.root / f"{TEMPORARY}{self.description.fingerprint}-{unique}.zarr"
        table = array_table(self.description, self.description.splits[shard.split].layout)
        try:
            files = write_shard(temporary, arrays, table, attributes)
            sync_tree(temporary)
        except OSError:
            with suppress(OSError):  # half a shard must not keep a full disk full; the next start sweeps what is left
                discard(temporary)
            raise
        return temporary, files

    def _remove(self, shard: ShardId) -> None:
        """Remove a shard, its manifest first: a manifest vouches for the files."""
        manifest = self.folder / manifest_file(shard)
        if manifest.exists():
            manifest.unlink()
            sync_folder(manifest.parent)
        discard(self.folder / shard_folder(shard))

    def _is_planned(self, manifest: ShardManifest, group: bytes) -> bool:
        """Whether `group`, the shard's zarr.json, is of this very shard of this cache."""
        found = json.loads(group).get("attributes")
        return bool(found == shard_attributes(self.description, manifest.shard, manifest.teacher_saw))


def shard_bytes(manifest: ShardManifest) -> int:
    """Bytes of a shard on disk, its manifest included."""
    return sum(record.size for record in manifest.files.values()) + len(manifest.to_bytes())
