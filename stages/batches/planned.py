"""The micro-batches of a training: which sequences they hold, read and put together ahead of their use."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset

from stages.batch_plan import BatchPlan, divided
from stages.batches.ahead import made_ahead
from stages.batches.collate import Batch, Wanted, training_batch
from stages.errors import ConfigError
from storage import CacheReader, ShardArrays, ShardLoader, SharedBy, decoded_bytes
from storage.ragged import Indices

SHARD_MEMORY_BYTES = 4 << 30


class PlannedBatches(IterableDataset[Batch]):
    """The micro-batches of a plan, as `labelled_first` gives them, from optimizer step `first_step` to before `last_step`, for one rank.

    The sequences of a step are grouped by length (`stages.batch_plan.divided`), so that little is padded.

    A process of its own reads the shards ahead (`storage.ShardLoader`), one for all ranks of a node (`shared_by`), and a thread puts
    the batches together. `memory_bytes` bounds what is decoded: with room for two windows of the plan, the next one is read
    while a window is in use. With `pin_memory` batches lie where a GPU copies from without the processor (copy them with
    `non_blocking=True`), and the micro-batches of a whole step lie ready, as Trainer takes them all at once; without it one does.
    """

    def __init__(
        self,
        reader: CacheReader,
        plan: BatchPlan,
        *,
        wanted: Wanted,
        micro_batch_size: int,
        first_step: int,
        last_step: int,
        rank: int = 0,
        world_size: int = 1,
        memory_bytes: int = SHARD_MEMORY_BYTES,
        shared_by: SharedBy | None = None,
        pin_memory: bool = False,
    ) -> None:
        if plan.batch_size % (micro_batch_size * world_size):
            raise ValueError(
                f"batches of {plan.batch_size} sequences; expected a multiple of {micro_batch_size} x {world_size}"
            )
        self.waited_s = 0.0
        """Seconds that the iteration has kept its caller waiting, for shards and for batches to be put together. It grows as batches
        are taken; the start of the loader's process does not count."""
        self._reader, self._plan, self._wanted = reader, plan, wanted
        self._micro_batch_size = micro_batch_size
        self._steps = range(first_step, last_step)
        self._rank, self._world_size = rank, world_size
        self._memory_bytes, self._shared_by = memory_bytes, shared_by
        self._pin_memory = pin_memory
        self._shards = [reader.shards("train", variant) for variant in range(plan.variants)]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the plan's epoch."""
        return self._plan.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        per_step = self._plan.batch_size // (self._micro_batch_size * self._world_size)
        with (
            self._loader() as loader,
            made_ahead(self._made(loader), per_step if self._pin_memory else 1, loader.interrupt) as batches,
        ):
            while True:
                started = time.perf_counter()
                batch = next(batches, None)
                self.waited_s += time.perf_counter() - started
                if batch is None:
                    return
                yield batch

    def _made(self, loader: ShardLoader) -> Iterator[Batch]:
        device = torch.cuda.current_device() if self._pin_memory else None
        return self._pinned(loader, device) if device is not None else self._micro_batches(loader)

    def _loader(self) -> ShardLoader:
        """Raises `ConfigError` where the memory does not hold what a window needs."""
        plan = self._plan
        slots, slot_bytes = slots_for(self._reader, plan, self._wanted, self._memory_bytes)
        visits = (
            (window, self._shards[variant][number])
            for window, variant, numbers in plan.windows(self._steps.start, self._steps.stop)
            for number in numbers
        )
        return ShardLoader(
            self._reader,
            visits,
            slots=slots,
            slot_bytes=slot_bytes,
            targets=self._wanted.targets,
            shared_by=self._shared_by,
        )

    def _pinned(self, loader: ShardLoader, device: int) -> Iterator[Batch]:
        torch.cuda.set_device(device)  # of the thread that runs this
        for batch in self._micro_batches(loader):
            yield {name: tensor.pin_memory() for name, tensor in batch.items()}

    def _micro_batches(self, loader: ShardLoader) -> Iterator[Batch]:
        for step in self._steps:
            yield from self._of_step(loader, step)

    def _of_step(self, loader: ShardLoader, step: int) -> Iterator[Batch]:
        shards = self._shards[self._plan.variant(step)]
        in_pass = self._micro_batch_size * self._world_size
        parts: list[tuple[ShardArrays, Indices]] = []
        end = 0
        for window, sequences in self._plan.pieces(step):
            # What lies in an earlier window may be gone once a later one is asked for.
            parts = [(arrays.select(chosen), np.arange(len(chosen))) for arrays, chosen in parts]
            # All ranks ask for all shards of the step, also for those that they take nothing from: so they see the lengths, and come
            # to the same windows before one of them waits for the others' gradients.
            found = {int(number): loader.get(window, shards[number]) for number in np.unique(sequences[:, 0])}
            begin, end = end, end + len(sequences)
            for number, chosen in divided(
                _lengths(found, sequences), begin, in_pass=in_pass, rank=self._rank, world_size=self._world_size
            ):
                parts += _by_shard(found, sequences[chosen])
                if end >= (number + 1) * in_pass:
                    description = self._reader.description
                    yield training_batch(
                        parts, pad_id=description.pad_id, wanted=self._wanted, objective=description.objective
                    )
                    parts = []


def _lengths(found: dict[int, ShardArrays], sequences: npt.NDArray[np.int64]) -> Indices:
    """Tokens of each sequence, given by shard number and place within."""
    lengths = np.empty(len(sequences), np.int64)
    for number, arrays in found.items():
        of_shard = sequences[:, 0] == number
        lengths[of_shard] = np.diff(arrays.sequence_offsets)[sequences[of_shard, 1]]
    return lengths


def _by_shard(found: dict[int, ShardArrays], sequences: npt.NDArray[np.int64]) -> Iterator[tuple[ShardArrays, Indices]]:
    """The sequences of each shard, in their order, by ascending shard number."""
    for number in np.unique(sequences[:, 0]):
        yield found[int(number)], sequences[sequences[:, 0] == number, 1]


def slots_for(reader: CacheReader, plan: BatchPlan, wanted: Wanted, memory_bytes: int) -> tuple[int, int]:
    """How many shards a training holds in memory, and the bytes of each. Raises `ConfigError` where a window does not fit."""
    every = [shard for shard in reader.description.shard_ids() if shard.split == "train"]
    slot_bytes = decoded_bytes(reader, every, wanted.targets)
    fit, needed = memory_bytes // slot_bytes, plan.window_shards
    if fit < needed:
        least = math.ceil(needed * slot_bytes / 2**30 * 1e4) / 1e4
        raise ConfigError(
            f"machine.shard_memory_gb is {memory_bytes / 2**30:.3g}; allowed: {least:g} or more, as {needed} shards of "
            f"up to {slot_bytes:,} bytes are in use at a time (cache.shard_tokens makes them smaller)"
        )
    return min(fit, 2 * needed, len(every)), slot_bytes
