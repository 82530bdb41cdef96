"""Which sequences each training step sees: a pure function of (shards, seed, batch size), so any step can be sought at once.

An epoch visits every sequence once. Shards are shuffled, taken in groups of a few that are resident together, and the
sequences of a group are shuffled among themselves: close to a full shuffle (sequences were shuffled once when they got
their ids) while only a few shards are in memory. The order does not depend on how many processes share it. Within a
step the sequences are grouped by length, which changes no gradient and saves padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import ConfigError
from stages.randomness import permutation
from storage import CacheDescription

RESIDENT_SHARDS = 4
"""Shards whose sequences are shuffled among each other."""


@dataclass(frozen=True)
class BatchPlan:
    """`sequences_per_shard` counts the sequences of each shard of one mask variant (every variant has the same)."""

    sequences_per_shard: tuple[int, ...]
    batch_size: int
    """Sequences per optimizer step, over all processes."""
    seed: int
    variants: int

    @classmethod
    def of(cls, description: CacheDescription, *, batch_size: int, seed: int) -> BatchPlan:
        """The plan over the training sequences of a cache."""
        split = description.splits["train"]
        return cls(tuple(count for _, count in split.shards), batch_size, seed, split.variants)

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}; allowed: at most the {sum(self.sequences_per_shard)} cached "
                "training sequences (cache.sequences.train caches more)"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; sequences that do not fill one are left out of that epoch."""
        return sum(self.sequences_per_shard) // self.batch_size

    def variant(self, step: int) -> int:
        """Mask variant that step `step` trains on: that of its epoch, modulo the cached ones."""
        return step // self.steps_per_epoch % self.variants

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """(batch_size, 2): shard index and index within the shard of each sequence of step `step`."""
        return self.batch_and_windows(step)[0]

    def batch_and_windows(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What `batch` gives, and (batch_size,), ascending: the window (below) that each sequence belongs to."""
        windows, sequences = zip(*self.pieces(step), strict=True)
        return np.concatenate(sequences), np.repeat(windows, [len(piece) for piece in sequences])

    def windows(self, first_step: int, last_step: int) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Number, mask variant and shard indices of each group of shards that the steps up to before `last_step` visit.

        The groups are numbered through all epochs.
        """
        if first_step >= last_step:
            return
        first = int(self.batch_and_windows(first_step)[1][0])
        last = int(self.batch_and_windows(last_step - 1)[1][-1])
        for window in range(first, last + 1):
            epoch, group = divmod(window, self._groups_per_epoch)
            groups, starts = _grouped(self.sequences_per_shard, self.seed, epoch)
            # The last groups of an epoch may hold just the sequences that fill no batch.
            if window in (first, last) or starts[group] < self.steps_per_epoch * self.batch_size:
                yield window, epoch % self.variants, groups[group]

    @property
    def window_shards(self) -> int:
        """Shards of the largest group."""
        return min(RESIDENT_SHARDS, len(self.sequences_per_shard))

    def pieces(self, step: int) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        """What each group gives to the batch of a step: its window, and (sequences, 2) as in `batch`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        groups, starts = _grouped(self.sequences_per_shard, self.seed, epoch)
        begin, end = within * self.batch_size, (within + 1) * self.batch_size
        for group in range(int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(starts, end, "left"))):
            low, high = max(begin, starts[group]) - starts[group], min(end, starts[group + 1]) - starts[group]
            shuffled = _shuffled_group(self.sequences_per_shard, groups[group], self.seed, epoch, group)
            yield epoch * self._groups_per_epoch + group, shuffled[low:high]

    @property
    def _groups_per_epoch(self) -> int:
        return -(-len(self.sequences_per_shard) // RESIDENT_SHARDS)


def divided(
    lengths: npt.NDArray[np.integer[Any]], begin: int, *, in_pass: int, rank: int, world_size: int
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """What a rank takes of the sequences that a window gives to a step: numbers of passes, and which of the sequences, i8.

    In a pass each rank has a micro-batch; `in_pass` sequences make up the micro-batches of all ranks. The longest sequences come
    first, so those of a pass have similar lengths (and memory is at its peak at once); within a pass the ranks take them
    in turn, so that their work is equal. `begin` sequences of the step were given by the windows before.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    places = np.arange(begin, begin + len(order))
    for number in range(begin // in_pass, -(-(begin + len(order)) // in_pass)):
        yield number, order[(places // in_pass == number) & (places % world_size == rank)]


@lru_cache(maxsize=4)
def _grouped(
    sequences_per_shard: tuple[int, ...], seed: int, epoch: int
) -> tuple[tuple[tuple[int, ...], ...], npt.NDArray[np.int64]]:
    """The groups of shards of an epoch in their order, and (groups + 1,) the place of each group's first sequence."""
    order = permutation(f"shards/{seed}", epoch, len(sequences_per_shard)).tolist()
    groups = tuple(tuple(order[i : i + RESIDENT_SHARDS]) for i in range(0, len(order), RESIDENT_SHARDS))
    return groups, np.cumsum([0, *(sum(sequences_per_shard[s] for s in group) for group in groups)])


@lru_cache(maxsize=4)
def _shuffled_group(
    sequences_per_shard: Sequence[int], group: tuple[int, ...], seed: int, epoch: int, number: int
) -> npt.NDArray[np.int64]:
    pairs = np.concatenate(
        [np.stack([np.full(sequences_per_shard[s], s), np.arange(sequences_per_shard[s])], axis=1) for s in group]
    )
    shuffled: npt.NDArray[np.int64] = pairs[permutation(f"sequences/{seed}/{epoch}", number, len(pairs))]
    return shuffled
