"""The arrays of a shard: the table of FORMAT.md section 3 in code, and one shard's arrays in memory, still encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from storage.codecs import INT8_FILL, decode_hidden, decode_logits
from storage.description import CacheDescription
from storage.layout import Layout

Axis = Literal["offsets", "tokens", "rows"]
Indices = NDArray[np.int64]


def id_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The dtype of token ids: its largest value is the fill value, so it is never an id."""
    return np.dtype("<u2" if vocabulary_size <= np.iinfo(np.uint16).max else "<u4")


@dataclass(frozen=True)
class ArraySpec:
    """One line of the table: what an array is called, what it holds per row, and how it is compressed."""

    name: str
    axis: Axis
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    compressor: Literal["zstd", "blosc"]

    @property
    def fill_value(self) -> float | int:
        """A value that data never holds: a reader that sees it has met a missing chunk."""
        if self.dtype.kind == "f":
            return float("nan")
        return INT8_FILL if self.dtype.kind == "i" else int(np.iinfo(self.dtype).max)

    def shape(self, *, sequences: int, tokens: int, rows: int) -> tuple[int, ...]:
        """The array's shape in a shard of so many sequences, tokens and rows."""
        return ({"offsets": sequences + 1, "tokens": tokens, "rows": rows}[self.axis], *self.row_shape)


def array_table(description: CacheDescription, layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays that a shard of this layout holds, in the order of FORMAT.md."""
    ids = id_dtype(description.vocabulary_size)
    table = [
        ArraySpec("sequence_offsets", "offsets", np.dtype("<u4"), (), "zstd"),
        ArraySpec("original_ids", "tokens", ids, (), "zstd"),
        ArraySpec("input_ids", "tokens", ids, (), "zstd"),
        ArraySpec("masked", "tokens", np.dtype("u1"), (), "zstd"),
    ]
    if layout.positions != "all":
        table.append(ArraySpec("row_token", "rows", np.dtype("<u4"), (), "zstd"))
    table.append(ArraySpec("stat", "rows", np.dtype("<f4"), (1 + 2 * len(description.temperatures),), "blosc"))
    if layout.logits != "none":
        kept = (layout.top_k,)
        table.append(ArraySpec("top_ids", "rows", ids, kept, "blosc"))
        if layout.logits == "grid":
            table.append(ArraySpec("top_gap", "rows", np.dtype("u1"), kept, "zstd"))
        else:
            table.append(ArraySpec("top_logits", "rows", np.dtype(layout.logits).newbyteorder("<"), kept, "zstd"))
    if layout.hidden != "none":
        layers, width = len(layout.hidden_layers), description.hidden_size
        dtype = np.dtype(layout.hidden).newbyteorder("<")
        table.append(ArraySpec("hidden", "rows", dtype, (layers, width), "zstd"))
        if layout.hidden == "int8":
            groups = -(-width // layout.hidden_group)
            table.append(ArraySpec("hidden_scale", "rows", np.dtype("<f2"), (layers, groups), "blosc"))
    return tuple(table)


@dataclass(frozen=True, kw_only=True)
class ShardArrays:
    """Some sequences of a cache with all that is stored about them, still encoded.

    S sequences, N tokens, R rows; the names are those of FORMAT.md section 3. It does not matter which shard the
    sequences come from: `select` and `concatenate` make batches of it.
    """

    sequence_ids: NDArray[np.int64]  # (S,)
    sequence_offsets: NDArray[np.uint32]  # (S + 1,)
    original_ids: NDArray[Any]  # (N,) u2 or u4
    input_ids: NDArray[Any]  # (N,) u2 or u4
    masked: NDArray[np.uint8]  # (N,)
    row_token: NDArray[np.uint32]  # (R,), there also for `positions: all`
    row_offsets: NDArray[np.int64]  # (S + 1,): the rows of sequence s are row_offsets[s] .. row_offsets[s + 1] - 1
    stat: NDArray[np.float32]  # (R, 1 + 2 D)
    top_ids: NDArray[Any] | None  # (R, k)
    logits: dict[str, NDArray[Any]]
    """`top_logits` or `top_gap` (R, k); empty for `logits: none`."""
    hidden: dict[str, NDArray[Any]]
    """`hidden` (R, L, H), perhaps `hidden_scale` (R, L, G); empty for `hidden: none`."""

    @property
    def rows(self) -> int:
        """R, the number of cached positions."""
        return len(self.row_token)

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.original_ids)

    def decoded_logits(self, layout: Layout, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Logits f4 (R, k), descending along each row."""
        return decode_logits(layout, {**self.logits, "stat": self.stat}, out)

    def decoded_hidden(self, layout: Layout, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Hidden states f4 (R, L, H)."""
        return decode_hidden(layout, self.hidden, out)

    def select(self, local_sequence_indices: NDArray[np.integer[Any]]) -> ShardArrays:
        """Copies of the given sequences (indices into `sequence_ids`), in the given order."""
        chosen = np.asarray(local_sequence_indices, dtype=np.int64)
        token_offsets = self.sequence_offsets.astype(np.int64)
        tokens, new_tokens = _gather_ranges(token_offsets, chosen)
        rows, new_rows = _gather_ranges(self.row_offsets, chosen)
        moved = np.repeat(new_tokens[:-1] - token_offsets[chosen], np.diff(new_rows))
        return ShardArrays(
            sequence_ids=self.sequence_ids[chosen],
            sequence_offsets=new_tokens.astype(np.uint32),
            original_ids=self.original_ids.take(tokens),
            input_ids=self.input_ids.take(tokens),
            masked=self.masked.take(tokens),
            row_token=(self.row_token.take(rows) + moved).astype(np.uint32),
            row_offsets=new_rows,
            stat=self.stat.take(rows, axis=0),
            top_ids=None if self.top_ids is None else self.top_ids.take(rows, axis=0),
            logits={name: array.take(rows, axis=0) for name, array in self.logits.items()},
            hidden={name: array.take(rows, axis=0) for name, array in self.hidden.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ShardArrays]) -> ShardArrays:
        """The sequences of all parts, one part after the other. The parts must be of one layout."""
        if not parts:
            raise ValueError("nothing to concatenate; expected at least one ShardArrays")
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        token_starts = np.cumsum([0, *(part.tokens for part in parts)])
        row_starts = np.cumsum([0, *(part.rows for part in parts)])

        def shifted(name: str, starts: Indices, *, inner: bool) -> Indices:
            pieces = [getattr(part, name).astype(np.int64) + start for part, start in zip(parts, starts, strict=False)]
            # Offsets have one more entry than sequences: the end of a part is the start of the next.
            return np.concatenate([piece[:-1] for piece in pieces[:-1]] + pieces[-1:] if inner else pieces)

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(part, name) for part in parts])

        return cls(
            sequence_ids=joined("sequence_ids"),
            sequence_offsets=shifted("sequence_offsets", token_starts, inner=True).astype(np.uint32),
            original_ids=joined("original_ids"),
            input_ids=joined("input_ids"),
            masked=joined("masked"),
            row_token=shifted("row_token", token_starts, inner=False).astype(np.uint32),
            row_offsets=shifted("row_offsets", row_starts, inner=True),
            stat=joined("stat"),
            top_ids=None if first.top_ids is None else joined("top_ids"),
            logits={name: np.concatenate([part.logits[name] for part in parts]) for name in first.logits},
            hidden={name: np.concatenate([part.hidden[name] for part in parts]) for name in first.hidden},
        )


def _gather_ranges(offsets: Indices, chosen: Indices) -> tuple[Indices, Indices]:
    """Flat indices of the ranges `offsets[i] .. offsets[i + 1]` for i in `chosen`, and the offsets of the result."""
    starts = offsets[chosen]
    lengths = offsets[chosen + 1] - starts
    ends = np.cumsum(lengths)
    new_offsets = np.concatenate([np.zeros(1, np.int64), ends])
    indices = np.arange(new_offsets[-1], dtype=np.int64) + np.repeat(starts - new_offsets[:-1], lengths)
    return indices, new_offsets
