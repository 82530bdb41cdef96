"""Batches of a split as it lies in the cache, for what is not training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stages.batches.collate import Batch, Wanted, to_batch
from storage import CacheReader, Split


def split_batches(
    reader: CacheReader,
    split: Split,
    *,
    batch_size: int,
    wanted: Wanted,
    sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The first `sequences` of a split (None: all), `batch_size` at a time (fewer at the end of a shard), shard by shard.

    Within a shard those of like length come together, so that little is padded. Of the batches this rank takes every
    `world_size`-th.
    """
    description, number = reader.description, 0
    left = description.splits[split].sequences if sequences is None else sequences
    for shard in reader.shards(split):
        if left <= 0:
            return
        arrays = reader.load(shard, targets=wanted.targets)
        by_length = np.argsort(np.diff(arrays.sequence_offsets.astype(np.int64))[:left], kind="stable")
        left -= len(by_length)
        for begin in range(0, len(by_length), batch_size):
            if number % world_size == rank:
                chosen = arrays.select(by_length[begin : begin + batch_size])
                yield to_batch(chosen, pad_id=description.pad_id, wanted=wanted, objective=description.objective)
            number += 1
