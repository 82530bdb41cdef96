"""The same micro-batches of several caches as one: inputs and labels once, the targets of each teacher beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.utils.data import IterableDataset

from stages.batches.collate import Batch
from stages.batches.planned import PlannedBatches

OF_ALL = ("input_ids", "attention_mask", "row_index", "labels")
"""What of a batch no teacher has a part in."""


class JoinedBatches(IterableDataset[Batch]):
    """The micro-batches of the main cache, and in each the targets `NAME/...` of further caches (by name).

    All of them are of one plan, and the caches of the same tokens and masks: so their sequences and rows are the same, in the
    same order.
    """

    def __init__(self, main: PlannedBatches, further: Mapping[str, PlannedBatches]) -> None:
        self._main, self._further = main, further

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the plan's epoch."""
        return self._main.steps_per_epoch

    @property
    def waited_s(self) -> float:
        """Seconds that the iteration has kept its caller waiting."""
        return self._main.waited_s + sum(batches.waited_s for batches in self._further.values())

    def __iter__(self) -> Iterator[Batch]:
        iterators = [iter(batches) for batches in (self._main, *self._further.values())]
        try:
            for main, *others in zip(*iterators, strict=True):
                yield joined(main, dict(zip(self._further, others, strict=True)))
        finally:
            for iterator in iterators:
                iterator.close()  # type: ignore[attr-defined]  # a generator: it ends the process that reads ahead


def joined(main: Batch, further: Mapping[str, Batch]) -> Batch:
    """`main` with the targets of the same rows from other caches, as `NAME/...`."""
    batch = dict(main)
    for name, other in further.items():
        assert all(torch.equal(main[shared], other[shared]) for shared in ("row_index", "labels")), name
        batch.update({f"{name}/{key}": tensor for key, tensor in other.items() if key not in OF_ALL})
    return batch


def of_further(batch: Batch, name: str) -> Batch:
    """What a batch would be had it come from the cache `name` alone."""
    prefix = f"{name}/"
    own = {key.removeprefix(prefix): tensor for key, tensor in batch.items() if key.startswith(prefix)}
    return {key: batch[key] for key in OF_ALL} | own
