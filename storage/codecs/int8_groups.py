"""Vectors as int8 with a float16 scale per group of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage.codecs.blocks import Arrays, Float32, Float64, row_blocks, row_values
from storage.codecs.floats import FLOAT16_MAX

INT8_MAX = 127
INT8_FILL = -128

_F = TypeVar("_F", np.float32, np.float64)


@dataclass(frozen=True)
class Int8Groups:
    """int8 with one float16 scale per `group` consecutive values of the last axis: absmax quantisation.

    The last group may be shorter; a group as wide as the row, or wider, is one scale per row.

    Error: at most (1/2 + 2^-18) scale, where scale is the smallest float16 that is not below max |x| / 127. The 2^-18
    is the float32 rounding of x / scale. Decoding is exact: 7 bits times 11 bits fit in a float32.
    Takes |x| <= 127 * 65,504.
    """

    group: int
    name: str = "hidden"

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return INT8_MAX * FLOAT16_MAX

    def error_bound(self, values: Float32) -> Float64:
        """f8 (R, L, H): how far each decoded value may be off."""
        scale = self._scale(values).astype(np.float64)
        return np.broadcast_to((0.5 + 2.0**-18) * self._spread(scale, values.shape[-1]), values.shape)

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        """`<name>` i1 (R, L, H) and `<name>_scale` f2 (R, L, ceil(H / group)) of f4 (R, L, H)."""
        rows, layers, width = values.shape
        quantised = np.empty(values.shape, np.int8)
        scales = np.empty((rows, layers, -(-width // self.group)), np.float16)
        for block in row_blocks(rows, layers * width):
            x = values[block]
            scales[block] = scale = self._scale(x)
            divisor = np.where(scale == 0, np.float32(1), scale.astype(np.float32))
            quantised[block] = np.rint(x / self._spread(divisor, width))
        return {self.name: quantised, f"{self.name}_scale": scales}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 (R, L, H): `<name> * <name>_scale`."""
        quantised, scales = arrays[self.name], arrays[f"{self.name}_scale"]
        if out is None:
            out = np.empty(quantised.shape, np.float32)
        for block in row_blocks(len(quantised), row_values(quantised)):
            scale = self._spread(scales[block].astype(np.float32), quantised.shape[-1])
            np.multiply(quantised[block], scale, out=out[block], dtype=np.float32)
        return out

    def _scale(self, values: Float32) -> NDArray[np.float16]:
        starts = np.arange(0, values.shape[-1], self.group)
        absmax = np.maximum.reduceat(np.abs(values), starts, axis=-1)
        scale = (absmax / np.float32(INT8_MAX)).astype(np.float16)
        # float16 times 127 is exact in float32, so this finds exactly the scales that were rounded down.
        too_small = scale.astype(np.float32) * np.float32(INT8_MAX) < absmax
        return np.nextafter(scale, np.float16(np.inf), out=scale, where=too_small)

    def _spread(self, scale: NDArray[_F], width: int) -> NDArray[_F]:
        """A group's scale for each of its values; one scale per row broadcasts as it is."""
        return scale if self.group >= width else np.repeat(scale, self.group, axis=-1)[..., :width]
