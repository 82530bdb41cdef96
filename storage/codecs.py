"""How hidden states and logits become bytes, and back (FORMAT.md, section 4): each codec states its error.

The codecs are plain numpy. They work in blocks of rows, so that temporaries stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.layout import Layout

FLOAT16_MAX = 65504.0
INT8_MAX = 127
INT8_FILL = -128
GAP_MAX = 254

Arrays = Mapping[str, NDArray[Any]]
Float32 = NDArray[np.float32]

_BLOCK_VALUES = 1 << 18


def row_blocks(rows: int, row_values: int) -> Iterator[slice]:
    """Slices that cover `rows` rows of `row_values` values, about a quarter of a million values each."""
    step = max(1, _BLOCK_VALUES // max(1, row_values))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def row_values(array: NDArray[Any]) -> int:
    """Values in one row (one index of the first axis) of an array."""
    return int(np.prod(array.shape[1:], dtype=np.int64))


@dataclass(frozen=True)
class FloatCodec:
    """Values as they are, in float32 or rounded to the nearest float16.

    Error: none in float32; in float16 at most |x| / 2048, or 2^-25 where |x| < 2^-14. float16 takes |x| <= 65,504.
    """

    name: str
    dtype: str

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return FLOAT16_MAX if self.dtype == "float16" else float(np.finfo(np.float32).max)

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        return {self.name: values.astype(self.dtype, copy=False)}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        if out is None:
            return arrays[self.name].astype(np.float32, copy=False)
        np.copyto(out, arrays[self.name])
        return out


@dataclass(frozen=True)
class Int8Groups:
    """int8 with one float16 scale per `group` consecutive values of the last axis: absmax quantisation.

    Error: at most (1/2 + 2^-18) scale, where scale is the smallest float16 that is not below max |x| / 127. The 2^-18
    is the float32 rounding of x / scale. Decoding is exact: 7 bits times 11 bits fit in a float32.
    Takes |x| <= 127 * 65,504.
    """

    group: int

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return INT8_MAX * FLOAT16_MAX

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        """`hidden` i1 (R, L, H) and `hidden_scale` f2 (R, L, ceil(H / group)) of f4 (R, L, H)."""
        rows, layers, width = values.shape
        starts = np.arange(0, width, self.group)
        quantised = np.empty(values.shape, np.int8)
        scales = np.empty((rows, layers, len(starts)), np.float16)
        for block in row_blocks(rows, layers * width):
            x = values[block]
            absmax = np.maximum.reduceat(np.abs(x), starts, axis=-1)
            scale = (absmax / np.float32(INT8_MAX)).astype(np.float16)
            # float16 times 127 is exact in float32, so this finds exactly the scales that were rounded down.
            too_small = scale.astype(np.float32) * np.float32(INT8_MAX) < absmax
            np.nextafter(scale, np.float16(np.inf), out=scale, where=too_small)
            scales[block] = scale
            divisor = np.where(scale == 0, np.float32(1), scale.astype(np.float32))
            quantised[block] = np.rint(x / self._spread(divisor, width))
        return {"hidden": quantised, "hidden_scale": scales}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 (R, L, H): `hidden * hidden_scale`."""
        quantised, scales = arrays["hidden"], arrays["hidden_scale"]
        if out is None:
            out = np.empty(quantised.shape, np.float32)
        for block in row_blocks(len(quantised), row_values(quantised)):
            scale = self._spread(scales[block].astype(np.float32), quantised.shape[-1])
            np.multiply(quantised[block], scale, out=out[block], dtype=np.float32)
        return out

    def _spread(self, scale: Float32, width: int) -> Float32:
        return np.repeat(scale, self.group, axis=-1)[..., :width]


@dataclass(frozen=True)
class LogitGrid:
    """Descending logits as u1 gaps on a grid of `step` nats, counted down from the row's largest logit.

    Error: at most step / 2 (and the float32 rounding of the logit) for each entry, not growing along the row, because
    each gap is taken from the grid point that the reader has reached. A gap of 254 is saturated: there, and only there,
    the bound does not hold.
    """

    step: float

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return float(np.finfo(np.float32).max)

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        """`top_gap` u1 (R, k) of f4 (R, k), descending along the row.

        With r_j = round((z_0 - z_j) / step), FORMAT.md's recursion q_j = min(r_j, q_(j-1) + 254) has the closed form
        q_j = min over i <= j of r_i + 254 (j - i): one running minimum.
        """
        rows, kept = values.shape
        reach = GAP_MAX * np.arange(kept, dtype=np.int64)
        gaps = np.empty(values.shape, np.uint8)
        for block in row_blocks(rows, kept):
            z = values[block].astype(np.float64)
            steps = np.minimum(np.rint((z[:, :1] - z) / self.step), reach).astype(np.int64)
            reached = np.minimum.accumulate(steps - reach, axis=1) + reach
            gaps[block] = np.diff(reached, axis=1, prepend=0)
        return {"top_gap": gaps}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 (R, k) of `top_gap`, counted from the largest logit in column 0 of `stat`."""
        gaps, maximum = arrays["top_gap"], arrays["stat"][:, :1]
        if out is None:
            out = np.empty(gaps.shape, np.float32)
        for block in row_blocks(*gaps.shape):
            below = np.cumsum(gaps[block], axis=1, dtype=np.int32) * np.float32(self.step)
            np.subtract(maximum[block], below, out=out[block])
        return out


Codec = FloatCodec | Int8Groups | LogitGrid


def hidden_codec(layout: Layout) -> Codec | None:
    """The codec of the hidden states; None where none are cached."""
    if layout.hidden == "none":
        return None
    return Int8Groups(layout.hidden_group) if layout.hidden == "int8" else FloatCodec("hidden", layout.hidden)


def logits_codec(layout: Layout) -> Codec | None:
    """The codec of the top-k logits; None where none are cached."""
    if layout.logits == "none":
        return None
    return LogitGrid(layout.grid_step) if layout.logits == "grid" else FloatCodec("top_logits", layout.logits)


def encode_hidden(layout: Layout, hidden: Float32) -> dict[str, NDArray[Any]]:
    """The stored arrays (`hidden`, perhaps `hidden_scale`) of hidden states f4 (R, L, H)."""
    return _cached(hidden_codec(layout), "hidden states").encode(hidden)


def decode_hidden(layout: Layout, arrays: Arrays, out: Float32 | None = None) -> Float32:
    """Hidden states f4 (R, L, H) of the stored arrays; into `out` where given."""
    return _cached(hidden_codec(layout), "hidden states").decode(arrays, out)


def encode_logits(layout: Layout, top_logits: Float32) -> dict[str, NDArray[Any]]:
    """The stored array (`top_logits` or `top_gap`) of logits f4 (R, k), descending along each row."""
    return _cached(logits_codec(layout), "logits").encode(top_logits)


def decode_logits(layout: Layout, arrays: Arrays, out: Float32 | None = None) -> Float32:
    """Logits f4 (R, k) of the stored arrays, which for `logits: grid` include `stat`; into `out` where given."""
    return _cached(logits_codec(layout), "logits").decode(arrays, out)


def _cached(codec: Codec | None, what: str) -> Codec:
    if codec is None:
        raise ValueError(f"this layout caches no {what}")
    return codec
