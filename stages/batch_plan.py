"""Which sequences each training step sees: a pure function of (shards, seed, batch size), so any step can be sought at once.

An epoch visits every sequence once. Shards are shuffled, taken in groups of a few that are resident together, and the
sequences of a group are shuffled among themselves: close to a full shuffle (sequences were shuffled once when they got
their ids) while only a few shards are in memory. The order does not depend on how many processes share it: process r
of w takes a slice of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from stages.errors import ConfigError
from stages.randomness import permutation

RESIDENT_SHARDS = 4


@dataclass(frozen=True)
class BatchPlan:
    """`sequences_per_shard` counts the sequences of each shard of one mask variant (every variant has the same)."""

    sequences_per_shard: tuple[int, ...]
    batch_size: int
    """Sequences per optimizer step, over all processes."""
    seed: int
    variants: int

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
        epoch, within = divmod(step, self.steps_per_epoch)
        groups = self._groups(epoch)
        starts = np.concatenate([[0], np.cumsum([sum(self.sequences_per_shard[s] for s in group) for group in groups])])
        begin, end = within * self.batch_size, (within + 1) * self.batch_size
        parts = []
        for group in range(int(np.searchsorted(starts, begin, "right")) - 1, int(np.searchsorted(starts, end, "left"))):
            low, high = max(begin, starts[group]) - starts[group], min(end, starts[group + 1]) - starts[group]
            parts.append(_shuffled_group(self.sequences_per_shard, groups[group], self.seed, epoch, group)[low:high])
        return np.concatenate(parts)

    def _groups(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        order = permutation(f"shards/{self.seed}", epoch, len(self.sequences_per_shard)).tolist()
        return tuple(tuple(order[i : i + RESIDENT_SHARDS]) for i in range(0, len(order), RESIDENT_SHARDS))


@lru_cache(maxsize=4)
def _shuffled_group(
    sequences_per_shard: Sequence[int], group: tuple[int, ...], seed: int, epoch: int, number: int
) -> npt.NDArray[np.int64]:
    pairs = np.concatenate(
        [np.stack([np.full(sequences_per_shard[s], s), np.arange(sequences_per_shard[s])], axis=1) for s in group]
    )
    shuffled: npt.NDArray[np.int64] = pairs[permutation(f"sequences/{seed}/{epoch}", number, len(pairs))]
    return shuffled
