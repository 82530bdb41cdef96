"""The arrays of a shard on disk: the table of FORMAT.md section 3 in code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from storage.codecs import BFLOAT16_INFINITY, GAP_MAX, INT8_FILL, INT8_MAX, row_blocks, row_values
from storage.description import CacheDescription
from storage.layout import Layout, VectorName

Axis = Literal["offsets", "sequences", "tokens", "rows", "entries", "draws"]
Compressor = Literal["zstd", "blosc"]
Target = Literal["logits", "draws", "hidden", "queries", "keys", "values"]
"""What a reader may do without: `logits` are the arrays `top_*`, `draws` those named `draw_*`, and of vectors each kind is a
target of its own, its scales included."""
TARGETS: frozenset[Target] = frozenset(get_args(Target))
_TARGET_OF_PREFIX: dict[str, Target] = {
    "top": "logits",
    "draw": "draws",
    **{name: name for name in get_args(VectorName)},
}


def id_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """The dtype of token ids: its largest value is the fill value, so it is never an id."""
    return np.dtype("<u2" if vocabulary_size <= np.iinfo(np.uint16).max else "<u4")


@dataclass(frozen=True)
class ArraySpec:
    """One line of the table: what an array is called, what it holds, and how it is compressed."""

    name: str
    axis: Axis
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    compressor: Compressor
    fill_value: float | int
    """A value that data never holds: a reader that sees it has met a missing chunk."""
    limits: tuple[int, int] | None
    """Smallest and largest value of the data; None for floats (and the bits of bfloat16), which must be finite."""

    @property
    def target(self) -> Target | None:
        """The target that the array belongs to; None for those of tokens and rows, which are always read."""
        return _TARGET_OF_PREFIX.get(self.name.partition("_")[0])

    def shape(self, counts: Mapping[str, int]) -> tuple[int, ...]:
        """The array's shape in a shard with these counts (those of its manifest).

        Raises `KeyError` where the count that this array needs is not among them.
        """
        length = counts["sequences"] + 1 if self.axis == "offsets" else counts[self.axis]
        return (length, *self.row_shape)

    def holds_only_data(self, data: NDArray[Any]) -> bool:
        """True where no entry is the fill value or out of range."""
        if data.size == 0:
            return True
        if self.limits is not None:
            low, high = self.limits
            return int(data.min()) >= low and int(data.max()) <= high
        # The exponent bits of infinity and NaN are all ones; testing them as integers is several times faster than
        # isfinite for float16, and works for the bits of bfloat16.
        bits = data.view(np.dtype(f"u{self.dtype.itemsize}"))
        magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
        is_bfloat16 = self.dtype.kind == "u"
        infinity = BFLOAT16_INFINITY if is_bfloat16 else int(np.array(np.inf, self.dtype).view(bits.dtype))
        blocks = row_blocks(len(bits), row_values(bits))
        return all(int((bits[block] & magnitude).max()) < infinity for block in blocks)


def array_table(description: CacheDescription, layout: Layout) -> tuple[ArraySpec, ...]:
    """The arrays that a shard of this layout holds, in the order of FORMAT.md."""
    ids = id_dtype(description.vocabulary_size)
    largest_id = description.vocabulary_size - 1
    table = [
        _index("sequence_offsets", "offsets"),
        _integers("original_ids", "tokens", ids, (0, largest_id)),
        _integers("input_ids", "tokens", ids, (0, largest_id)),
        _integers("masked", "tokens", np.dtype("u1"), (0, 1)),
    ]
    if layout.positions != "all":
        table.append(_index("row_token", "rows"))
    if layout.task == "none":
        table.append(_floats("stat", np.dtype("<f4"), (1 + 2 * len(description.temperatures),), "blosc"))
    else:
        table += _of_task(layout)
    if layout.logits != "none":
        ragged = layout.selection == "threshold"
        axis: Axis = "entries" if ragged else "rows"
        kept = () if ragged else (layout.top_k,)
        if ragged:
            table.append(_counts("top_count", "rows", layout.top_k))
        table.append(_integers("top_ids", axis, ids, (0, largest_id), kept, "blosc"))
        if layout.logits == "grid":
            table.append(_integers("top_gap", axis, np.dtype("u1"), (0, GAP_MAX), kept))
        else:
            table.append(_floats("top_logits", np.dtype(layout.logits).newbyteorder("<"), kept, axis=axis))
    if layout.draws > 0:
        table.append(_counts("draw_count", "rows", layout.draws))
        table.append(_integers("draw_ids", "draws", ids, (0, largest_id), compressor="blosc"))
        table.append(_counts("draw_weight", "draws", layout.draws))
    for name, width in layout.vectors(description.hidden_size).items():
        table += _vectors(name, layout, width)
    return tuple(table)


def _of_task(layout: Layout) -> list[ArraySpec]:
    """Token types, labels and logits of a downstream task."""
    answers, float32 = layout.task == "answers", np.dtype("<f4")
    types = [_integers("token_types", "tokens", np.dtype("u1"), (0, 1))] if layout.token_types else []
    return [
        *types,
        _integers("task_labelled", "sequences", np.dtype("u1"), (0, 1)),
        _floats("task_label", float32, (2 if answers else 1,), axis="sequences"),
        _floats("task_logits", float32, (layout.task_width,), axis="tokens" if answers else "sequences"),
    ]


def _vectors(name: VectorName, layout: Layout, width: int) -> list[ArraySpec]:
    """The array of vectors of this width, and that of their scales where they have some."""
    layers = len(layout.layers(name))
    match layout.coding(name):
        case "int8":
            groups = -(-width // layout.hidden_group)
            return [
                ArraySpec(name, "rows", np.dtype("i1"), (layers, width), "zstd", INT8_FILL, (-INT8_MAX, INT8_MAX)),
                _floats(f"{name}_scale", np.dtype("<f2"), (layers, groups), "blosc"),
            ]
        case "bfloat16":
            return [ArraySpec(name, "rows", np.dtype("<u2"), (layers, width), "zstd", 0xFFFF, None)]
        case dtype:
            return [_floats(name, np.dtype(dtype).newbyteorder("<"), (layers, width))]


def _integers(
    name: str,
    axis: Axis,
    dtype: np.dtype[Any],
    limits: tuple[int, int],
    row_shape: tuple[int, ...] = (),
    compressor: Compressor = "zstd",
) -> ArraySpec:
    return ArraySpec(name, axis, dtype, row_shape, compressor, int(np.iinfo(dtype).max), limits)


def _index(name: str, axis: Axis) -> ArraySpec:
    return _integers(name, axis, np.dtype("<u4"), (0, np.iinfo(np.uint32).max - 1))


def _counts(name: str, axis: Axis, most: int) -> ArraySpec:
    return ArraySpec(name, axis, np.dtype("u1"), (), "zstd", 0, (1, most))


def _floats(
    name: str,
    dtype: np.dtype[Any],
    row_shape: tuple[int, ...],
    compressor: Compressor = "zstd",
    axis: Axis = "rows",
) -> ArraySpec:
    return ArraySpec(name, axis, dtype, row_shape, compressor, float("nan"), None)
