"""How vectors (hidden states, queries, keys, values) and logits become bytes, and back (FORMAT.md, section 4).

Each codec is a small frozen dataclass: `encode` gives the arrays to store, `decode` the values (into `out` where given),
`limit` is the largest magnitude that it takes, `error_bound` says for each value how far the decoded one may be off. The
codecs are plain numpy. They work in blocks of rows, so that temporaries stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs.blocks import Arrays, Float32, row_blocks, row_values
from storage.codecs.floats import BFLOAT16_INFINITY, BFLOAT16_MAX, FLOAT16_MAX, Bfloat16, FloatCodec
from storage.codecs.int8_groups import INT8_FILL, INT8_MAX, Int8Groups
from storage.codecs.logit_grid import GAP_MAX, LogitGrid
from storage.layout import Layout, VectorName

__all__ = [
    "BFLOAT16_INFINITY",
    "BFLOAT16_MAX",
    "FLOAT16_MAX",
    "GAP_MAX",
    "INT8_FILL",
    "INT8_MAX",
    "Arrays",
    "Bfloat16",
    "Codec",
    "FloatCodec",
    "Int8Groups",
    "LogitGrid",
    "LogitsCodec",
    "VectorCodec",
    "decode_logits",
    "decode_vectors",
    "encode_hidden",
    "encode_logits",
    "encode_vectors",
    "logits_codec",
    "row_blocks",
    "row_values",
    "vector_codec",
]

VectorCodec = FloatCodec | Bfloat16 | Int8Groups
LogitsCodec = FloatCodec | LogitGrid
Codec = VectorCodec | LogitsCodec

_IN_WORDS: dict[VectorName, str] = {
    "hidden": "hidden states",
    "queries": "queries",
    "keys": "keys",
    "values": "values of attention",
}


def vector_codec(layout: Layout, name: VectorName) -> VectorCodec | None:
    """The codec of these vectors; None where they are not cached."""
    match layout.coding(name):
        case "none":
            return None
        case "int8":
            return Int8Groups(layout.hidden_group, name)
        case "bfloat16":
            return Bfloat16(name)
        case dtype:
            return FloatCodec(name, dtype)


def logits_codec(layout: Layout) -> LogitsCodec | None:
    """The codec of the cached logits; None where none are cached."""
    match layout.logits:
        case "none":
            return None
        case "grid":
            return LogitGrid(layout.grid_step)
        case dtype:
            return FloatCodec("top_logits", dtype)


def encode_vectors(layout: Layout, name: VectorName, values: Float32) -> dict[str, NDArray[Any]]:
    """The stored arrays (`<name>`, perhaps `<name>_scale`) of vectors f4 (R, L, W)."""
    return _cached(vector_codec(layout, name), _IN_WORDS[name]).encode(values)


def decode_vectors(layout: Layout, name: VectorName, arrays: Arrays, out: Float32 | None = None) -> Float32:
    """Vectors f4 (R, L, W) of the stored arrays; into `out` where given."""
    return _cached(vector_codec(layout, name), _IN_WORDS[name]).decode(arrays, out)


def encode_hidden(layout: Layout, hidden: Float32) -> dict[str, NDArray[Any]]:
    """The stored arrays (`hidden`, perhaps `hidden_scale`) of hidden states f4 (R, L, H)."""
    return encode_vectors(layout, "hidden", hidden)


def encode_logits(
    layout: Layout, top_logits: Float32, top_count: NDArray[np.integer[Any]] | None = None
) -> dict[str, NDArray[Any]]:
    """The stored array (`top_logits` or `top_gap`) of logits that descend along each row.

    They are f4 (R, k), or f4 (E,) with the rows' lengths in `top_count` (R,).
    """
    codec = _cached(logits_codec(layout), "logits")
    return codec.encode(top_logits, top_count) if isinstance(codec, LogitGrid) else codec.encode(top_logits)


def decode_logits(layout: Layout, arrays: Arrays, out: Float32 | None = None) -> Float32:
    """Logits f4 (R, k), or (E,) for ragged rows, of the stored arrays; into `out` where given.

    For `logits: grid` the arrays include `stat` and, for `selection: threshold`, `top_count`.
    """
    return _cached(logits_codec(layout), "logits").decode(arrays, out)


def _cached(codec: Codec | None, what: str) -> Codec:
    if codec is None:
        raise ValueError(f"this layout caches no {what}")
    return codec
