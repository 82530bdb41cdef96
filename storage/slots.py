"""Memory for decoded shards that two processes share and that is used again and again: no page of it is ever new twice."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.layout import ShardId
from storage.reader import CacheReader
from storage.shard import Allocate, shard_shapes

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
        """Gives arrays in the slot, one behind the other: the same ones for the same shapes in the same order."""
        end = slot * self.size

        def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
            nonlocal end
            start = end
            end = start + padded(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            if end > (slot + 1) * self.size:
                raise MemoryError(f"a slot has {self.size} bytes; the arrays need more")
            return np.ndarray(shape, dtype, self._memory, start)

        return allocate

    def close(self) -> None:
        """Give up the descriptor. The memory goes when the last array in it does."""
        os.close(self.descriptor)


def decoded_bytes(reader: CacheReader, shards: Iterable[ShardId]) -> int:
    """What the largest of the shards takes in memory, decompressed and still encoded."""
    return max(
        sum(
            padded(int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize)
            for spec, shape in shard_shapes(reader.description, shard, reader.shard_counts(shard))
        )
        for shard in shards
    )


def padded(size: int) -> int:
    """Bytes up to where the next array may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("teacher-cache-shards")
    else:  # macOS
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)  # noqa: PTH108
    os.ftruncate(descriptor, size)
    return descriptor
