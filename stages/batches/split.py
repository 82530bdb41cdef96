"""Batches of a split as it lies in the cache, for what is not training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.batches.collate import Batch, Wanted, to_batch
from storage import CacheReader, Split


def split_batches(reader: CacheReader, split: Split, *, batch_size: int, wanted: Wanted) -> Iterator[Batch]:
    """All sequences of a split in order, `batch_size` at a time (fewer at the end of a shard)."""
    description = reader.description
    for shard in reader.shards(split):
        arrays = reader.load(shard, targets=wanted.targets)
        for begin in range(0, len(arrays.sequence_ids), batch_size):
            chosen = np.arange(begin, min(begin + batch_size, len(arrays.sequence_ids)))
            yield to_batch(
                arrays.select(chosen), pad_id=description.pad_id, wanted=wanted, objective=description.objective
            )
