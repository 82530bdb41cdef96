"""Memory for decoded shards that two processes share and that is used again and again: no page of it is ever new twice."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Collection, Iterable
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import TARGETS, Target
from storage.layout import ShardId
from storage.reader import CacheReader
from storage.shard import Allocate, Shapes, shard_shapes

_ALIGNMENT = 64
"""Bytes: a cache line, and what vector instructions like best."""


class Slots:
    """`count` pieces of `size` bytes each in one anonymous file, mapped into this process.

    Another process that inherits the file's descriptor maps the same memory. It belongs to no folder, so it needs no
    room in /dev/shm (64 MB in many containers), and the kernel frees it when the last process ends, however that ends.
    """

    def __init__(self, count: int, size: int, descriptor: int | None = None) -> None:
        self.count, self.size = count, size
        self.descriptor = _anonymous_file(count * size) if descriptor is None else descriptor
        self._memory = mmap.mmap(self.descriptor, count * size)

    def allocator(self, slot: int) -> Allocate:
        """Gives arrays in the slot, one behind the other: for the same shapes the same ones, each time."""

        def allocate(wanted: Shapes) -> list[NDArray[Any]]:
            places, end = _laid_out(wanted)
            if end > self.size:
                raise MemoryError(f"a slot has {self.size} bytes; the arrays need {end}")
            start = slot * self.size
            return [
                np.ndarray(shape, dtype, self._memory, start + place)
                for (shape, dtype), place in zip(wanted, places, strict=True)
            ]

        return allocate

    def close(self) -> None:
        """Give up the descriptor. The memory goes when the last array in it does."""
        os.close(self.descriptor)


def decoded_bytes(reader: CacheReader, shards: Iterable[ShardId], targets: Collection[Target] = TARGETS) -> int:
    """What the largest of the shards takes in a slot with the given targets, decompressed and still encoded."""

    def of(shard: ShardId) -> int:
        shapes = shard_shapes(reader.description, shard, reader.shard_counts(shard), targets)
        return _laid_out([(shape, spec.dtype) for spec, shape in shapes])[1]

    return max(map(of, shards))


def _laid_out(wanted: Shapes) -> tuple[list[int], int]:
    """Where each array begins, and where the last one ends (rounded up to where another could begin)."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    ends = list(accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))
    return [0, *ends[:-1]], ends[-1]


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("teacher-cache-shards")
    else:  # macOS
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)  # noqa: PTH108
    os.ftruncate(descriptor, size)
    return descriptor
