"""A cache as a `datasets.IterableDataset`: its `map`, `filter`, `shuffle`, formats and splitting by node, over cached sequences."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import IterableDataset

from storage import CachedSequences
from storage.cached_sequences import Example
from storage.layout import ShardId


def iterable_dataset(sequences: CachedSequences) -> IterableDataset:
    """The sequences, with the columns of `sequences.features`, read shard by shard.

    Its shards are those of the cache: `shuffle` shuffles them and what is in its buffer, workers of a DataLoader and
    `datasets.distributed.split_dataset_by_node` share them out. With `with_format("torch")` columns are tensors,
    without it numpy arrays; `CachedSequences.features` describes them.
    """
    # Without `features`, which would cost more than the reading, and give empty lists for tensors of no rows.
    return IterableDataset.from_generator(_examples, gen_kwargs={"sequences": sequences, "shards": sequences.shards})


def _examples(sequences: CachedSequences, shards: list[ShardId]) -> Iterator[Example]:
    for shard in shards:
        yield from sequences.of_shard(shard)
