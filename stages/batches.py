"""From rows of the cache to tensors: the only bridge between `storage` and torch.

A batch is a dict of tensors as they are stored (int8 stays int8 on its way to the device); `TargetDecoder` turns them
into targets on the device that they are on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from stages.batch_plan import RESIDENT_SHARDS, BatchPlan
from stages.errors import ConfigError
from stages.losses import IGNORED, TopKTargets
from storage import CacheDescription, CacheReader, Layout, ShardArrays, ShardId, Split

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of the stored targets a loss reads: the others need not travel to the device."""

    hidden: bool
    logits: bool


def to_batch(rows: ShardArrays, *, pad_id: int, wanted: Wanted) -> Batch:
    """Pad the sequences of `rows` (S sequences, R rows, longest L) and lay their rows out flat.

    `input_ids`, `attention_mask` i8 (S, L); `row_index` i8 (R,): place of each row in the flattened (S L,); `labels` i8
    (R,); and, as stored, `hidden` (R, layers, H), `hidden_scale`, `stat`, `top_ids` i8 (R, k), `top_gap` or `top_logits`.
    """
    offsets = rows.sequence_offsets.astype(np.int64)
    lengths = np.diff(offsets)
    longest = int(lengths.max())
    real = np.arange(longest) < lengths[:, None]
    input_ids = np.full(real.shape, pad_id, np.int64)
    input_ids[real] = rows.input_ids
    place = np.flatnonzero(real)  # of each token in the flattened (S, L)
    tokens = rows.row_token.astype(np.int64)
    labels = np.where(rows.masked[tokens] == 1, rows.original_ids[tokens].astype(np.int64), IGNORED)
    arrays = {
        "input_ids": input_ids,
        "attention_mask": real.astype(np.int64),
        "row_index": place[tokens],
        "labels": labels,
    }
    if wanted.hidden:
        arrays.update(rows.hidden)
    if wanted.logits and rows.top_ids is not None:
        arrays.update(rows.logits, stat=rows.stat, top_ids=rows.top_ids.astype(np.int64))
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@dataclass(frozen=True)
class TargetDecoder:
    """Decodes the targets of a batch where it lies; the same values as storage's numpy codecs give."""

    layout: Layout
    temperatures: tuple[float, ...]

    def hidden(self, batch: Batch) -> Tensor:
        """The teacher's last cached hidden state, f4 (R, H)."""
        hidden = batch["hidden"][:, -1].float()
        if self.layout.hidden == "int8":
            scale = batch["hidden_scale"][:, -1].float().repeat_interleave(self.layout.hidden_group, dim=-1)
            hidden = hidden * scale[:, : hidden.shape[-1]]
        return hidden

    def top_k(self, batch: Batch, temperature: float) -> TopKTargets:
        """The cached ids (R, k) with their log-probabilities at a declared temperature.

        Raises `ConfigError` for another one: its logsumexp over the whole vocabulary is not in the cache.
        """
        if temperature not in self.temperatures:
            declared = ", ".join(map(str, self.temperatures))
            raise ConfigError(
                f"train.temperature is {temperature}; allowed: the temperatures that the cache declares ({declared})"
            )
        if self.layout.logits == "grid":
            steps = batch["top_gap"].to(torch.int32).cumsum(-1, dtype=torch.int32)
            logits = batch["stat"][:, :1] - self.layout.grid_step * steps
        else:
            logits = batch["top_logits"].float()
        logsumexp = batch["stat"][:, 1 + 2 * self.temperatures.index(temperature), None]
        return TopKTargets(batch["top_ids"], logits / temperature - logsumexp)


class ResidentShards:
    """Loads shards and keeps the last few in memory, so that a batch from several shards costs no second read."""

    def __init__(self, reader: CacheReader, limit: int = 2 * RESIDENT_SHARDS) -> None:
        self._reader = reader
        self._limit = limit
        self._shards: OrderedDict[ShardId, ShardArrays] = OrderedDict()

    def get(self, shard: ShardId) -> ShardArrays:
        """The shard's arrays. Raises `storage.CorruptError`, naming shard and file, where they are damaged."""
        if shard not in self._shards:
            while len(self._shards) >= self._limit:
                self._shards.popitem(last=False)
            self._shards[shard] = self._reader.load(shard)
        self._shards.move_to_end(shard)
        return self._shards[shard]


class PlannedBatches(IterableDataset[Batch]):
    """The micro-batches of a plan, from optimizer step `first_step` to before `last_step`, for one rank."""

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
    ) -> None:
        self._reader, self._plan, self._wanted = reader, plan, wanted
        self._micro_batch_size = micro_batch_size
        self._steps = range(first_step, last_step)
        self._rank, self._world_size = rank, world_size

    def __iter__(self) -> Iterator[Batch]:
        shards = ResidentShards(self._reader)
        pad_id = self._reader.description.pad_id
        for step in self._steps:
            ids = self._reader.shards("train", self._plan.variant(step))
            sequences = self._plan.batch(step)[self._rank :: self._world_size]
            for begin in range(0, len(sequences), self._micro_batch_size):
                micro = sequences[begin : begin + self._micro_batch_size]
                parts = [
                    shards.get(ids[shard]).select(micro[micro[:, 0] == shard, 1]) for shard in np.unique(micro[:, 0])
                ]
                yield to_batch(ShardArrays.concatenate(parts), pad_id=pad_id, wanted=self._wanted)


def split_batches(reader: CacheReader, split: Split, *, batch_size: int, wanted: Wanted) -> Iterator[Batch]:
    """All sequences of a split in order, `batch_size` at a time (fewer at the end of a shard)."""
    pad_id = reader.description.pad_id
    for shard in reader.shards(split):
        arrays = reader.load(shard)
        for begin in range(0, len(arrays.sequence_ids), batch_size):
            chosen = np.arange(begin, min(begin + batch_size, len(arrays.sequence_ids)))
            yield to_batch(arrays.select(chosen), pad_id=pad_id, wanted=wanted)


def decoder_for(description: CacheDescription, split: Split) -> TargetDecoder:
    """The decoder of a split's targets."""
    return TargetDecoder(description.splits[split].layout, description.temperatures)
