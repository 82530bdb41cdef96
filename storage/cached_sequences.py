"""A split of a cache as a sequence of its token sequences, decoded: for code that wants examples, not shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from storage.arrays import Target
from storage.description import CacheDescription
from storage.layout import PARTS, Layout, ShardId, Split, VectorName
from storage.reader import CacheReader
from storage.shard_arrays import ShardArrays

Example = dict[str, Any]
"""The columns of one sequence: `sequence_id` an int, all others numpy arrays."""
RESIDENT_SHARDS = 2


@dataclass(frozen=True)
class Column:
    """What a column holds for one sequence."""

    dtype: str
    """As numpy calls it: `int64`, `bool` or `float32`."""
    shape: tuple[int | str, ...]
    """Lengths, or names of those that differ: `tokens` of the sequence, its `rows` (cached positions)."""
    target: Target | None = None
    """What has to be read for it beside tokens and `stat`."""


def columns_of(description: CacheDescription, split: Split) -> dict[str, Column]:
    """The columns that the layout of a split has, in their order.

    | column | what |
    |---|---|
    | `sequence_id` | the sequence's number, the same in every variant |
    | `original_ids`, `input_ids`, `masked` | its tokens, those that the teacher saw, and where they were predicted |
    | `positions` | the token of the sequence that each row belongs to |
    | `max_logit` | the teacher's largest logit |
    | `logsumexp`, `entropy` | of its logits over each of the D declared temperatures, over the whole vocabulary; nats |
    | `top_ids`, `top_logits` | its best ids, descending. A row with fewer repeats its first, with a logit of -inf |
    | `draw_ids`, `draw_counts` | ids drawn from it, and how often. A row with fewer repeats its first, with a count of 0 |
    | `hidden`, `queries`, `keys`, `values` | its vectors, of the L cached layers or blocks |
    | `token_types`, `label`, `task_logits` | in a cache of a downstream task (FORMAT.md, section 10); `label` is NaN where there is none |
    """
    layout, temperatures = description.splits[split].layout, len(description.temperatures)
    columns = {
        "sequence_id": Column("int64", ()),
        "original_ids": Column("int64", ("tokens",)),
        "input_ids": Column("int64", ("tokens",)),
        "masked": Column("bool", ("tokens",)),
        "positions": Column("int64", ("rows",)),
    }
    if layout.task == "none":
        columns["max_logit"] = Column("float32", ("rows",))
        columns["logsumexp"] = columns["entropy"] = Column("float32", ("rows", temperatures))
    else:
        if layout.token_types:
            columns["token_types"] = Column("int64", ("tokens",))
        answers = layout.task == "answers"
        columns["label"] = Column("float32", (2 if answers else 1,))
        columns["task_logits"] = Column("float32", ("tokens", 2) if answers else (layout.task_width,))
    if layout.logits != "none":
        columns["top_ids"] = Column("int64", ("rows", layout.top_k), "logits")
        columns["top_logits"] = Column("float32", ("rows", layout.top_k), "logits")
    if layout.draws > 0:
        columns["draw_ids"] = columns["draw_counts"] = Column("int64", ("rows", layout.draws), "draws")
    for name, of_each in layout.vectors(description.hidden_size).items():
        columns[name] = Column("float32", ("rows", len(layout.layers(name)), of_each), name)
    return columns


class CachedSequences:
    """The sequences of one variant of a split, decoded to numpy, in the manner of a `datasets.Dataset`.

    `len`; `[i]` is one sequence as a dict of the columns, `[a:b]` and `[[i, j]]` are a dict of lists; iteration gives one
    sequence after the other and reads every shard once. Columns are those of `columns_of`; with `columns` only those, and what they
    do not need is not decoded. At most `resident_shards` shards stay in memory, still encoded: to reach sequences at random needs a
    shard read for most of them, so shuffle shards and read within them (`stages.cache_dataset`, `stages.batches`).

    Threads may share it, and it can be pickled: the process that unpickles it (a worker of a DataLoader) reads for itself.
    Raises `ValueError` for a split, variant or column that the cache does not have, and what `CacheReader.load` raises.
    """

    def __init__(
        self,
        reader: CacheReader,
        split: Split = "train",
        *,
        variant: int = 0,
        columns: Collection[str] | None = None,
        resident_shards: int = RESIDENT_SHARDS,
    ) -> None:
        description = reader.description
        if split not in description.splits:
            raise ValueError(f"the cache holds no split {split!r}; it holds {', '.join(description.splits)}")
        of_split = description.splits[split]
        if not 0 <= variant < of_split.variants:
            raise ValueError(f"variant {variant} of {split} is not cached; expected 0 to {of_split.variants - 1}")
        there = columns_of(description, split)
        missing = [name for name in columns or () if name not in there]
        if missing:
            raise ValueError(f"the cache holds no {missing[0]!r} of {split}; it holds {', '.join(there)}")
        self.reader, self.split, self.variant = reader, split, variant
        self.features = {name: column for name, column in there.items() if columns is None or name in columns}
        """The columns, by name."""
        self.temperatures = description.temperatures
        """Of `logsumexp` and `entropy`, in the order of their second axis."""
        self.shards = reader.shards(split, variant)
        self._starts = np.array([description.span(shard)[0] for shard in self.shards])
        self._layout, self._length = of_split.layout, of_split.sequences
        self._resident_shards = resident_shards
        targets = frozenset(column.target for column in self.features.values() if column.target is not None)
        self._load = lru_cache(resident_shards)(lambda shard: reader.load(shard, targets=targets))

    @property
    def column_names(self) -> list[str]:
        """The names in `features`."""
        return list(self.features)

    def __repr__(self) -> str:
        return f"CachedSequences({self.split}, variant {self.variant}: {self._length} sequences of {', '.join(self.features)})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as what it was made from: shards that were read do not travel."""
        return _made, (self.reader, self.split, self.variant, self.column_names, self._resident_shards)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[np.integer[Any]]) -> dict[str, list[Any]]: ...
    def __getitem__(
        self, index: int | slice | Sequence[int] | NDArray[np.integer[Any]]
    ) -> Example | dict[str, list[Any]]:
        if isinstance(index, int | np.integer):
            return self.__getitems__([int(index)])[0]
        examples = self.__getitems__(range(self._length)[index] if isinstance(index, slice) else index)
        return {name: [example[name] for example in examples] for name in self.features}

    def __getitems__(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[Example]:
        """The sequences at some places, each one a dict: what a DataLoader of torch asks for. Each shard is taken in hand once."""
        places = self._places(indices)
        numbers = self._numbers(places)
        found: list[Example] = [{}] * len(places)
        for number in np.unique(numbers):
            arrays = self._load(self.shards[number])
            for at in np.flatnonzero(numbers == number):
                found[at] = self._decoded(arrays, int(places[at] - self._starts[number]))
        return found

    def __iter__(self) -> Iterator[Example]:
        for shard in self.shards:
            yield from self.of_shard(shard)

    def of_shard(self, shard: ShardId) -> Iterator[Example]:
        """The sequences of one of `shards`, in their order."""
        arrays = self._load(shard)
        for place in range(len(arrays.sequence_ids)):
            yield self._decoded(arrays, place)

    def arrays(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> ShardArrays:
        """The sequences at some places as they are stored, for `stages.batches.to_batch`: shard by shard, else in the given order."""
        places = self._places(indices)
        numbers = self._numbers(places)
        return ShardArrays.concatenate(
            [
                self._load(self.shards[number]).select(places[numbers == number] - self._starts[number])
                for number in np.unique(numbers)
            ]
        )

    def _places(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        places = np.asarray(indices, np.int64).reshape(-1)
        outside = places[(places < -self._length) | (places >= self._length)]
        if len(outside):
            raise IndexError(f"sequence {outside[0]} of {self._length}")
        return np.where(places < 0, places + self._length, places)

    def _numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the shards that hold the sequences at these places."""
        return np.searchsorted(self._starts, places, side="right") - 1

    def _decoded(self, arrays: ShardArrays, place: int) -> Example:
        sequence = arrays.select(np.array([place]))
        example: Example = {}
        for name in self.features:
            value = _VALUES[name](sequence, self._layout)
            example[name] = int(value[0]) if name == "sequence_id" else value
        return example


def _made(reader: CacheReader, split: Split, variant: int, columns: list[str], resident_shards: int) -> CachedSequences:
    return CachedSequences(reader, split, variant=variant, columns=columns, resident_shards=resident_shards)


def _present(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None
    return array


def _rectangle(count: NDArray[np.integer[Any]], width: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """For ragged rows of these lengths: places in the flat array, (R, width), and which of them are the row's own.

    A row that is shorter is filled up with its first place.
    """
    inside = np.arange(width) < count[:, None]
    starts = np.cumsum(count, dtype=np.int64) - count
    return starts[:, None] + np.where(inside, np.arange(width), 0), inside


def _top_ids(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    ids = _present(sequence.top_ids).astype(np.int64)
    return ids if sequence.top_count is None else ids[_rectangle(sequence.top_count, layout.top_k)[0]]


def _top_logits(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    logits = sequence.decoded_logits(layout)
    if sequence.top_count is not None:
        places, inside = _rectangle(sequence.top_count, layout.top_k)
        logits = np.where(inside, logits[places], np.float32(-np.inf))
    logits[:, 0] = sequence.stat[:, 0]  # not rounded
    return logits


def _draw_ids(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    places, _ = _rectangle(_present(sequence.draw_count), layout.draws)
    return _present(sequence.draw_ids)[places].astype(np.int64)


def _draw_counts(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    places, inside = _rectangle(_present(sequence.draw_count), layout.draws)
    return np.where(inside, _present(sequence.draw_weight)[places], 0).astype(np.int64)


def _label(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    del layout
    label = _present(sequence.task_label)[0]
    return label if _present(sequence.task_labelled)[0] else np.full_like(label, np.nan)


def _task_logits(sequence: ShardArrays, layout: Layout) -> NDArray[Any]:
    logits = _present(sequence.task_logits)
    return logits if layout.task == "answers" else logits[0]


def _vectors(name: VectorName) -> Callable[[ShardArrays, Layout], NDArray[Any]]:
    if name == "hidden":
        return lambda sequence, layout: sequence.decoded_hidden(layout)
    return lambda sequence, layout: sequence.decoded_attention(layout, name)


_VALUES: dict[str, Callable[[ShardArrays, Layout], NDArray[Any]]] = {
    "sequence_id": lambda sequence, _: sequence.sequence_ids,
    "original_ids": lambda sequence, _: sequence.original_ids.astype(np.int64),
    "input_ids": lambda sequence, _: sequence.input_ids.astype(np.int64),
    "masked": lambda sequence, _: sequence.masked == 1,
    "positions": lambda sequence, _: sequence.row_token.astype(np.int64),
    "max_logit": lambda sequence, _: sequence.stat[:, 0],
    "logsumexp": lambda sequence, _: sequence.stat[:, 1::2],
    "entropy": lambda sequence, _: sequence.stat[:, 2::2],
    "token_types": lambda sequence, _: _present(sequence.token_types).astype(np.int64),
    "label": _label,
    "task_logits": _task_logits,
    "top_ids": _top_ids,
    "top_logits": _top_logits,
    "draw_ids": _draw_ids,
    "draw_counts": _draw_counts,
    "hidden": _vectors("hidden"),
    **{part: _vectors(part) for part in PARTS},
}
"""How each column is decoded from the arrays of one sequence."""
