"""A cache as a `datasets.IterableDataset`: its `map`, `filter`, `shuffle`, formats and splitting by node, over cached sequences."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import Array2D, Array3D, Features, IterableDataset, List, Value

from storage import CachedSequences, Column
from storage.cached_sequences import Example
from storage.layout import ShardId


def iterable_dataset(sequences: CachedSequences) -> IterableDataset:
    """The sequences, with the columns of `sequences.features`, read shard by shard.

    Its shards are those of the cache: `shuffle` shuffles them and what is in its buffer, workers of a DataLoader and
    `datasets.distributed.split_dataset_by_node` share them out. With `with_format("torch")` columns are tensors, with
    `with_format("numpy")` arrays.
    """
    return IterableDataset.from_generator(
        _examples,
        gen_kwargs={"sequences": sequences, "shards": list(sequences.shards)},
        features=features_of(sequences),
    )


def features_of(sequences: CachedSequences) -> Features:
    """The columns as `datasets` describes them."""
    return Features({name: _feature(column) for name, column in sequences.features.items()})


def _feature(column: Column) -> Value | List | Array2D | Array3D:
    match column.shape:
        case ():
            return Value(column.dtype)
        case (length,):
            return List(Value(column.dtype), length=length if isinstance(length, int) else -1)
        case (_, width):  # thirty times faster than lists of lists
            return Array2D((None, width), column.dtype)
        case _:
            return Array3D((None, *column.shape[1:]), column.dtype)


def _examples(sequences: CachedSequences, shards: list[ShardId]) -> Iterator[Example]:
    for shard in shards:
        yield from sequences.of_shard(shard)
