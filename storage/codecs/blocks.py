"""What the codecs share: names of types, and blocks of rows that fit into the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FLOAT32_MAX = float(np.finfo(np.float32).max)

_BLOCK_VALUES = 1 << 18


def row_blocks(rows: int, row_values: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_values` values, about a quarter of a million values each."""
    step = max(1, _BLOCK_VALUES // max(1, row_values))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_values(array: NDArray[Any]) -> int:
    """Values in one row (one index of the first axis) of an array."""
    return int(np.prod(array.shape[1:], dtype=np.int64))
