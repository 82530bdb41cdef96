"""Ragged arrays: rows of different lengths, one after the other in a flat array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def offsets_of(counts: NDArray[np.integer[Any]]) -> Indices:
    """i8 (R + 1,) of the rows' lengths (R,): row r is `offsets[r] .. offsets[r + 1]` of the flat array."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def gather_ranges(offsets: Indices, chosen: Indices) -> tuple[Indices, Indices]:
    """Flat indices of the ranges `offsets[i] .. offsets[i + 1]` for i in `chosen`, and the offsets of the result."""
    starts = offsets[chosen]
    lengths = offsets[chosen + 1] - starts
    new_offsets = offsets_of(lengths)
    indices = np.arange(new_offsets[-1], dtype=np.int64) + np.repeat(starts - new_offsets[:-1], lengths)
    return indices, new_offsets
