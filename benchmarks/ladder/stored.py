"""A rung on disk: written by storage's own writer, counted, read back; and how fast its codecs are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ladder.rungs import TEMPERATURES, Rung
from ladder.teacher import Said, Teacher
from stages.draws import count_draws
from storage import CacheDescription, CacheWork, ShardArrays, ShardId, SplitDescription, encode_hidden, encode_logits
from storage.manifest import ShardManifest, manifest_file, shard_folder
from storage.shard import read_shard

SHARED = ("sequence_offsets", "original_ids", "input_ids", "masked", "stat")
"""Arrays that all rungs hold: tokens, masks and the statistics of the whole vocabulary."""


@dataclass(frozen=True)
class Stored:
    """A rung's shard, read back."""

    arrays: ShardArrays
    targets: float
    """Bytes per position of the rung's own arrays, compressed and with checksums."""
    shared: float
    """Bytes per position of the arrays in `SHARED`."""
    metadata: int
    """Bytes per shard, however many positions it holds: descriptions of the arrays and the shard's manifest."""

    @property
    def total(self) -> float:
        """Bytes per position of all arrays."""
        return self.targets + self.shared


def store(folder: Path, cache: CacheDescription, rung: Rung, teacher: Teacher, said: Said) -> Stored:
    """Write the positions as one shard of this rung into a new work folder below `folder`, and read it."""
    sequences = teacher.sequences
    count = len(sequences.sequence_ids)
    split = SplitDescription(
        layout=rung.layout, variants=1, sequences=count, tokens=sequences.tokens, shards=((0, count),)
    )
    description = replace(cache, splits={"train": split}, temperatures=TEMPERATURES)
    shard = ShardId("train", 0, 0)
    with CacheWork.open(folder / rung.name.replace("/", "-"), description) as work:
        work.publish(shard, said.targets(teacher, rung.layout), {}, {})
        file = work.folder / manifest_file(shard)
        manifest = ShardManifest.from_bytes(shard, file.read_bytes())
        arrays = read_shard(
            work.folder / shard_folder(shard),
            description,
            shard,
            counts=manifest.counts,
            teacher_saw=manifest.teacher_saw,
        )
    sizes: Counter[str] = Counter()
    for name, record in manifest.files.items():
        inside = Path(name).relative_to(shard_folder(shard))
        sizes["metadata" if inside.name == "zarr.json" else inside.parts[0]] += record.size
    metadata = sizes.pop("metadata") + file.stat().st_size
    shared = sum(sizes.pop(name) for name in SHARED)
    return Stored(arrays, sizes.total() / arrays.rows, shared / arrays.rows, metadata)


def encoder(rung: Rung, teacher: Teacher, said: Said) -> Callable[[], float] | None:
    """A function that encodes all positions in memory, by numpy; gives the seconds of the processor. None for all float32."""
    targets, layout = said.targets(teacher, rung.layout), rung.layout
    if layout.draws == 0 and {layout.hidden, layout.logits} <= {"float32", "none"}:
        return None
    drawn = said.draws(layout) if layout.draws else None

    def run() -> float:
        start = time.process_time()
        if targets.hidden is not None:
            encode_hidden(layout, targets.hidden)
        if targets.top_logits is not None:
            encode_logits(layout, targets.top_logits, targets.top_count)
        if drawn is not None:
            count_draws(drawn)
        return time.process_time() - start

    return run


def decoder(rung: Rung, stored: Stored) -> Callable[[], float] | None:
    """A function that decodes all positions to float32 in memory, by numpy; None for draws, which are used as they lie."""
    arrays, layout = stored.arrays, rung.layout
    if layout.hidden == layout.logits == "none":
        return None
    hidden = np.empty(arrays.hidden["hidden"].shape, np.float32) if arrays.hidden else None
    logits = np.empty(arrays.top_ids.shape, np.float32) if arrays.top_ids is not None else None

    def run() -> float:
        start = time.process_time()
        if hidden is not None:
            arrays.decoded_hidden(layout, hidden)
        if logits is not None:
            arrays.decoded_logits(layout, logits)
        return time.process_time() - start

    return run
