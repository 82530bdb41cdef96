"""Values as floating-point numbers: float32, float16, and bfloat16 as bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs.blocks import FLOAT32_MAX, Arrays, Float32, Float64, row_blocks, row_values

FLOAT16_MAX = 65504.0
BFLOAT16_INFINITY = 0x7F80
"""The bits of infinity; with the sign bit cleared, all finite values have smaller bits."""
BFLOAT16_MAX = float(np.uint32(0x7F7F7FFF).view(np.float32))
"""The largest float32 that rounds to a finite bfloat16; the next one is a tie that goes to infinity."""


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
        return FLOAT16_MAX if self.dtype == "float16" else FLOAT32_MAX

    def error_bound(self, values: Float32) -> Float64:
        """f8 of the same shape: how far each decoded value may be off."""
        if self.dtype == "float32":
            return np.zeros(values.shape)
        return np.maximum(np.abs(values, dtype=np.float64) / 2048, 2.0**-25)

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        """The values of f4 (any shape), by the codec's name."""
        return {self.name: values.astype(self.dtype, copy=False)}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 of the shape of the stored array."""
        if out is None:
            return arrays[self.name].astype(np.float32, copy=False)
        np.copyto(out, arrays[self.name])
        return out


@dataclass(frozen=True)
class Bfloat16:
    """The upper 16 bits of the float32, rounded to nearest even, as u2: neither Zarr nor numpy has the dtype.

    Error: at most |x| / 256, or 2^-134 where |x| < 2^-126. Takes |x| < 2^127 (2 - 2^-8): what lies beyond would round to infinity.
    """

    name: str = "hidden"

    @property
    def limit(self) -> float:
        """Largest magnitude that can be stored."""
        return BFLOAT16_MAX

    def error_bound(self, values: Float32) -> Float64:
        """f8 of the same shape: how far each decoded value may be off."""
        return np.maximum(np.abs(values, dtype=np.float64) / 256, 2.0**-134)

    def encode(self, values: Float32) -> dict[str, NDArray[Any]]:
        """`<name>` u2 of f4 (R, L, H)."""
        coded = np.empty(values.shape, np.uint16)
        for block in row_blocks(len(values), row_values(values)):
            bits = np.ascontiguousarray(values[block], np.float32).view(np.uint32)
            # Just under half of the last kept bit, and the rest of the half where that bit is odd.
            half = (bits >> 16) & np.uint32(1)
            half += np.uint32(0x7FFF)
            half += bits
            coded[block] = half >> 16
        return {self.name: coded}

    def decode(self, arrays: Arrays, out: Float32 | None = None) -> Float32:
        """f4 (R, L, H) of `<name>`: the bits, with 16 zeros below."""
        bits = arrays[self.name]
        if out is None:
            out = np.empty(bits.shape, np.float32)
        np.left_shift(bits, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
        return out
