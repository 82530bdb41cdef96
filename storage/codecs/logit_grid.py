"""Descending logits as gaps on a grid, one byte each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs.blocks import FLOAT32_MAX, Arrays, Float32, Float64, row_blocks
from storage.ragged import Indices, offsets_of

GAP_MAX = 254

Counts = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class LogitGrid:
    """Descending logits as u1 gaps on a grid of `step` nats, counted down from the row's largest logit.

    Error: at most step / 2 for each entry, and the rounding of the float32 logit, 2^-22 (|z_max| + |z| + step). It does
    not grow along the row, because each gap is taken from the grid point that the reader has reached. A gap of 254 is
    saturated: there, and only there, the bound does not hold.

    Rows are those of a matrix (R, k) or, with their lengths in `top_count` (R,), lie one after the other in (E,).
    """

    step: float

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return FLOAT32_MAX

    def error_bound(self, values: Float32, top_count: Counts | None = None) -> Float64:
        """f8 of the same shape: how far each decoded value may be off; infinity where the gap is saturated."""
        z = np.abs(values, dtype=np.float64)
        z_max = z[:, :1] if top_count is None else np.repeat(z[offsets_of(top_count)[:-1]], top_count)
        bound = self.step / 2 + 2.0**-22 * (z_max + z + self.step)
        return np.where(self.encode(values, top_count)["top_gap"] == GAP_MAX, np.inf, bound)

    def encode(self, values: Float32, top_count: Counts | None = None) -> dict[str, NDArray[Any]]:
        """`top_gap` u1 of the same shape as the logits, f4 (R, k) or (E,).

        With r_j = round((z_0 - z_j) / step), FORMAT.md's recursion q_j = min(r_j, q_(j-1) + 254) has the closed form
        q_j = min over i <= j of r_i + 254 (j - i): one running minimum of r_j - 254 j.
        """
        gaps = np.empty(values.shape, np.uint8)
        if top_count is None:
            rows, kept = values.shape
            reach = GAP_MAX * np.arange(kept, dtype=np.int64)
            for block in row_blocks(rows, kept):
                z = values[block].astype(np.float64)
                steps = self._steps(z[:, :1] - z, reach)
                reached = np.minimum.accumulate(steps - reach, axis=1) + reach
                gaps[block] = np.diff(reached, axis=1, prepend=0)
            return {"top_gap": gaps}
        for entries, starts, lengths in _ragged_blocks(top_count):
            z = values[entries].astype(np.float64)
            reach = GAP_MAX * (np.arange(len(z), dtype=np.int64) - np.repeat(starts, lengths))
            steps = self._steps(np.repeat(z[starts], lengths) - z, reach)
            # Each row lies below the one before by more than a row can span, so that the running minimum starts anew.
            below = np.repeat(np.arange(len(starts)) * (GAP_MAX * int(lengths.max()) + 1), lengths)
            reached = np.minimum.accumulate(steps - reach - below) + reach + below
            differences = np.diff(reached, prepend=0)
            differences[starts] = 0
            gaps[entries] = differences
        return {"top_gap": gaps}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 of the shape of `top_gap`, counted from the largest logit in column 0 of `stat`."""
        gaps, maximum, step = arrays["top_gap"], arrays["stat"][:, 0], np.float32(self.step)
        if out is None:
            out = np.empty(gaps.shape, np.float32)
        if gaps.ndim == 2:
            for block in row_blocks(*gaps.shape):
                below = np.cumsum(gaps[block], axis=1, dtype=np.int32) * step
                np.subtract(maximum[block, None], below, out=out[block])
            return out
        first_row = 0
        for entries, starts, lengths in _ragged_blocks(arrays["top_count"]):
            reached = np.cumsum(gaps[entries], dtype=np.int64)
            reached -= np.repeat(reached[starts], lengths)  # the first gap of a row is 0
            rows = slice(first_row, first_row := first_row + len(starts))
            np.subtract(np.repeat(maximum[rows], lengths), reached * step, out=out[entries])
        return out

    def _steps(self, distances: Float64, reach: Indices) -> Indices:
        """The distances from the row's largest logit in whole steps, as far as gaps can reach (farther fits no int)."""
        return np.minimum(np.rint(distances / self.step), reach).astype(np.int64)


def _ragged_blocks(top_count: Counts) -> Iterator[tuple[slice, Indices, Indices]]:
    """Blocks of whole rows: their entries, where each row starts among these, and the rows' lengths (>= 1)."""
    offsets = offsets_of(top_count)
    rows = len(top_count)
    for block in row_blocks(rows, -(-int(offsets[-1]) // max(1, rows))):
        first = offsets[block.start]
        yield slice(first, offsets[block.stop]), offsets[block] - first, top_count[block].astype(np.int64)
