"""From rows of the cache to tensors: the only bridge between `storage` and torch.

A batch is a dict of tensors as they are stored (int8 stays int8 on its way to the device); `TargetDecoder` turns them
into targets on the device that they are on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from stages.batch_plan import BatchPlan
from stages.divergences import DrawnTargets, TopKTargets
from stages.errors import ConfigError
from stages.losses import IGNORED
from storage import (
    CacheDescription,
    CacheReader,
    Layout,
    ShardArrays,
    ShardId,
    ShardLoader,
    SharedBy,
    Split,
    decoded_bytes,
)

Batch = dict[str, Tensor]
_OF_SEQUENCES = ("input_ids", "attention_mask")
"""What of a batch does not belong to rows."""

SHARD_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of the stored targets a loss reads: the others need not travel to the device."""

    hidden: bool
    logits: bool
    draws: bool = False


def to_batch(rows: ShardArrays, *, pad_id: int, wanted: Wanted) -> Batch:
    """Pad the sequences of `rows` (S sequences, R rows, longest L) and lay their rows out flat.

    `input_ids`, `attention_mask` i8 (S, L); `row_index` i8 (R,): place of each row in the flattened (S L,); `labels` i8
    (R,); and, as stored, the last of `hidden` (R, 1, H), its `hidden_scale`, `stat`, `top_ids` i8 (R, k), `top_gap` or
    `top_logits`, `draw_ids` i8 (R, n) and `draw_weight`.

    What is ragged in the cache is as wide as its longest row here: a shorter row repeats its first id, with a weight of 0
    for draws; `top_count` u1 (R,) says how many of the logits count.
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
        arrays.update({name: array[:, -1:] for name, array in rows.hidden.items()})
    if wanted.logits or wanted.draws:
        arrays["stat"] = rows.stat
    if wanted.logits and rows.top_ids is not None:
        kept = {"top_ids": rows.top_ids.astype(np.int64), **rows.logits}
        if rows.top_count is not None:
            kept = {name: _padded(flat, rows.top_count) for name, flat in kept.items()} | {"top_count": rows.top_count}
        arrays.update(kept)
    if wanted.draws and rows.draw_count is not None and rows.draw_ids is not None and rows.draw_weight is not None:
        weight = _padded(rows.draw_weight, rows.draw_count)
        weight[~_inside(rows.draw_count)] = 0
        arrays.update(draw_ids=_padded(rows.draw_ids.astype(np.int64), rows.draw_count), draw_weight=weight)
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def labelled_first(batch: Batch) -> Batch:
    """The same batch for a loss: first the rows that are predicted, in their order, then the others.

    `labels` i8 (n,) are those of the first n rows. So their number is known without asking the device, and no kernel has to choose
    rows among (rows, V) logits.
    """
    labelled = batch["labels"] != IGNORED
    of_rows = [name for name in batch if name not in _OF_SEQUENCES]
    if not labelled.all():
        order = torch.cat([labelled.nonzero(), (~labelled).nonzero()]).squeeze(1)
        batch = batch | {name: batch[name][order] for name in of_rows}
    return batch | {"labels": batch["labels"][: int(labelled.sum())]}


def _inside(counts: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """B (rows, longest): which places of a padded array hold an entry of the row."""
    return np.arange(int(counts.max(initial=1))) < counts[:, None]


def _padded(flat: npt.NDArray[Any], counts: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """(rows, longest) from rows of one entry or more, one after the other: shorter ones are filled up with their first."""
    inside = _inside(counts)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    padded = np.repeat(flat[starts, None], inside.shape[1], axis=1)
    padded[inside] = flat
    return padded


@dataclass(frozen=True)
class TargetDecoder:
    """Decodes the targets of a batch where it lies; the same values as storage's numpy codecs give."""

    layout: Layout
    temperatures: tuple[float, ...]

    def hidden(self, batch: Batch) -> Tensor:
        """The teacher's last cached hidden state, f4 (R, H)."""
        hidden = batch["hidden"][:, -1]
        if self.layout.hidden == "bfloat16":
            return hidden.view(torch.bfloat16).float()
        hidden = hidden.float()
        if self.layout.hidden == "int8":
            scale = batch["hidden_scale"][:, -1].float().repeat_interleave(self.layout.hidden_group, dim=-1)
            hidden = hidden * scale[:, : hidden.shape[-1]]
        return hidden

    def logits(self, batch: Batch) -> Tensor:
        """The cached logits, f4 (R, k), descending along each row; places after a shorter row's last mean nothing."""
        if self.layout.logits != "grid":
            return batch["top_logits"].float()
        steps = batch["top_gap"].cumsum(-1, dtype=torch.int32)
        # In float64 as storage does: a step that is no power of two is rounded once.
        step = float(np.float32(self.layout.grid_step))
        return (batch["stat"][:, :1].double() - step * steps.double()).float()

    def top_k(self, batch: Batch, temperature: float, *, renormalise: bool = False) -> TopKTargets:
        """The cached ids (R, k) with their log-probabilities at a declared temperature.

        Raises `ConfigError` for another one: its logsumexp over the whole vocabulary is not in the cache.
        """
        if temperature not in self.temperatures:
            declared = ", ".join(map(str, self.temperatures))
            raise ConfigError(
                f"train.temperature is {temperature}; allowed: the temperatures that the cache declares ({declared})"
            )
        logsumexp = batch["stat"][:, 1 + 2 * self.temperatures.index(temperature), None]
        # The largest logit is in `stat` unrounded: as float16 it would move more mass than a sure teacher leaves to the rest.
        logits = torch.cat([batch["stat"][:, :1], self.logits(batch)[:, 1:]], -1)
        log_p = logits / temperature - logsumexp
        if "top_count" in batch:
            places = torch.arange(log_p.shape[1], device=log_p.device)
            log_p = log_p.masked_fill(places >= batch["top_count"][:, None], float("-inf"))
        return TopKTargets(batch["top_ids"], log_p, renormalise)

    def draws(self, batch: Batch, temperature: float) -> DrawnTargets:
        """The cached draws (R, n).

        Drawn from the full distribution they stand for it alone; drawn from the tail, for what the cached logits leave
        out, and the logits come before them.

        Raises `ConfigError` for another temperature than that of the distribution which they were drawn from.
        """
        if temperature != self.layout.draw_temperature:
            raise ConfigError(
                f"train.temperature is {temperature}; allowed: {self.layout.draw_temperature}, "
                "the temperature that the cache's ids were drawn at (cache.draw_temperature)"
            )
        entropy = batch["stat"][:, 2 + 2 * self.temperatures.index(temperature)]
        ids, shares = batch["draw_ids"], batch["draw_weight"].float() / self.layout.draws
        if self.layout.draw_from == "tail":
            head = self.top_k(batch, temperature)
            p = head.log_probabilities.exp()
            outside = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
            ids, shares = torch.cat([head.ids, ids], -1), torch.cat([p, outside * shares], -1)
        return DrawnTargets(ids, shares, entropy)

    def row_weights(self, batch: Batch) -> Tensor | None:
        """How many positions each row stands for, f4 (R,); None where each stands for itself. For batches of `labelled_first`."""
        if self.layout.positions != "sampled":
            return None
        rows = batch["row_index"]
        weights = torch.full(rows.shape, 1.0 / self.layout.position_fraction, device=rows.device)
        weights[: len(batch["labels"])] = 1.0
        return weights

    def positions(self, batch: Batch) -> int:
        """How many positions the rows stand for: all tokens where some were sampled, else the rows themselves."""
        return int(batch["attention_mask"].sum()) if self.layout.positions == "sampled" else batch["row_index"].numel()


class PlannedBatches(IterableDataset[Batch]):
    """The micro-batches of a plan, as `labelled_first` gives them, from optimizer step `first_step` to before `last_step`, for one rank.

    A process of its own reads the shards ahead (`storage.ShardLoader`), one for all ranks of a node (`shared_by`).
    `memory_bytes` bounds what is decoded: with room for two windows of the plan, the next one is read while a window is in use.
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
    ) -> None:
        self._reader, self._plan, self._wanted = reader, plan, wanted
        self._micro_batch_size = micro_batch_size
        self._steps = range(first_step, last_step)
        self._rank, self._world_size = rank, world_size
        self._memory_bytes, self._shared_by = memory_bytes, shared_by

    def __iter__(self) -> Iterator[Batch]:
        pad_id = self._reader.description.pad_id
        shards = [self._reader.shards("train", variant) for variant in range(self._plan.variants)]
        with self._loader(shards) as loader:
            for step in self._steps:
                sequences, windows = self._plan.batch_and_windows(step)
                of_variant = shards[self._plan.variant(step)]
                mine = np.arange(self._rank, len(sequences), self._world_size)
                for micro in np.split(mine, range(self._micro_batch_size, len(mine), self._micro_batch_size)):
                    rows = gather(loader, of_variant, sequences[micro], windows[micro])
                    if micro[-1] == mine[-1]:
                        # All ranks come to the same windows before one of them waits for the others' gradients.
                        loader.advance(int(windows[-1]))
                    yield labelled_first(to_batch(rows, pad_id=pad_id, wanted=self._wanted))

    def _loader(self, shards: list[list[ShardId]]) -> ShardLoader:
        """Reads `shards`, those of each variant. Raises `ConfigError` where the memory does not hold what a window needs."""
        plan = self._plan
        slots, slot_bytes = slots_for(self._reader, plan, self._memory_bytes)
        visits = (
            (window, shards[variant][number])
            for window, variant, numbers in plan.windows(self._steps.start, self._steps.stop)
            for number in numbers
        )
        return ShardLoader(self._reader, visits, slots=slots, slot_bytes=slot_bytes, shared_by=self._shared_by)


def slots_for(reader: CacheReader, plan: BatchPlan, memory_bytes: int) -> tuple[int, int]:
    """How many shards a training holds in memory, and the bytes of each. Raises `ConfigError` where a window does not fit."""
    every = [shard for shard in reader.description.shard_ids() if shard.split == "train"]
    slot_bytes = decoded_bytes(reader, every)
    fit, needed = memory_bytes // slot_bytes, plan.window_shards
    if fit < needed:
        least = math.ceil(needed * slot_bytes / 2**30 * 1e4) / 1e4
        raise ConfigError(
            f"machine.shard_memory_gb is {memory_bytes / 2**30:.3g}; allowed: {least:g} or more, as {needed} shards of "
            f"up to {slot_bytes:,} bytes are in use at a time (cache.shard_tokens makes them smaller)"
        )
    return min(fit, 2 * needed, len(every)), slot_bytes


class ShardSource(Protocol):
    """Gives the shards of a window; what lies in an earlier window may be gone once a later one is asked for."""

    def get(self, window: int, shard: ShardId) -> ShardArrays:
        """The arrays of a shard."""


def gather(
    source: ShardSource,
    shards: list[ShardId],
    sequences: npt.NDArray[np.int64],
    windows: npt.NDArray[np.int64],
) -> ShardArrays:
    """Copies of the given sequences: (n, 2) shard numbers and places within, and (n,) their windows; by ascending shard."""
    parts: dict[int, ShardArrays] = {}
    for window in np.unique(windows):  # ascending, as a source wants it
        of_window = sequences[windows == window]
        for number in np.unique(of_window[:, 0]):
            arrays = source.get(int(window), shards[number])
            parts[number] = arrays.select(of_window[of_window[:, 0] == number, 1])
    return ShardArrays.concatenate([parts[number] for number in sorted(parts)])


def split_batches(
    reader: CacheReader,
    split: Split,
    *,
    batch_size: int,
    wanted: Wanted,
    sequences: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The first `sequences` of a split (None: all), `batch_size` at a time (fewer at the end of a shard), shard by shard.

    Within a shard those of like length come together, so that little is padded. Of the batches this rank takes every
    `world_size`-th.
    """
    pad_id, number = reader.description.pad_id, 0
    left = reader.description.splits[split].sequences if sequences is None else sequences
    for shard in reader.shards(split):
        if left <= 0:
            return
        arrays = reader.load(shard)
        by_length = np.argsort(np.diff(arrays.sequence_offsets.astype(np.int64))[:left], kind="stable")
        left -= len(by_length)
        for begin in range(0, len(by_length), batch_size):
            if number % world_size == rank:
                yield to_batch(arrays.select(by_length[begin : begin + batch_size]), pad_id=pad_id, wanted=wanted)
            number += 1


def decoder_for(description: CacheDescription, split: Split) -> TargetDecoder:
    """The decoder of a split's targets."""
    return TargetDecoder(description.splits[split].layout, description.temperatures)
