"""Random numbers that are a pure function of what they are for.

Nothing here is a stream with a state: a number depends on a purpose, a seed and an index only, so any order, any world
size and any resume give the same ones. Philox 4x64-10 (Salmon et al. 2011) is counter-based, and only its raw output is
used: numpy guarantees that to stay the same, and not its higher-level distributions.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def words(purpose: str, index: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` random 64-bit words, u8 (count,), for `index` of `purpose` (any text, the seed in it)."""
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=16).digest(), "little")
    return np.random.Philox(key=key, counter=index << 128).random_raw(count)


def uniforms(raw: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Doubles in the open interval (0, 1) from 64-bit words, same shape."""
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def permutation(purpose: str, index: int, count: int) -> npt.NDArray[np.int64]:
    """A random order of 0..count-1, i8 (count,)."""
    return np.argsort(words(purpose, index, count), kind="stable")
