"""The teachers of a training: one, or several that a student learns from at once, each with a cache of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.batch_plan import BatchPlan
from stages.batches import Batch, TargetDecoder, Wanted, decoder_for
from stages.batches.joined import of_further
from stages.config import TrainConfig
from stages.config.ensemble import MAIN
from stages.ensemble_targets import EnsembleTargets
from stages.errors import ConfigError, InputError
from stages.heads import Head
from stages.losses import HiddenTargets, Targets
from storage import CacheReader, decoded_bytes, differing_fields


@dataclass(frozen=True, kw_only=True)
class FurtherCache:
    """The cache of a further teacher that the student learns from."""

    name: str
    """In `teachers` of params.yaml."""
    share: float
    reader: CacheReader


def main_share(config: TrainConfig) -> float:
    """How much the main teacher counts."""
    return 1.0 if config.ensemble is None else config.ensemble[MAIN]


def further_shares(config: TrainConfig) -> dict[str, float]:
    """How much each further teacher counts, those that do not left out."""
    return {name: share for name, share in (config.ensemble or {}).items() if name != MAIN and share > 0}


def root_digests(further: Sequence[FurtherCache]) -> dict[str, str]:
    """The root digests of the caches, by name."""
    return {cache.name: cache.reader.root_digest for cache in further}


def refuse_other_rows(main: CacheReader, name: str, reader: CacheReader, command: str) -> None:
    """Refuse the cache of the further teacher `name` unless its rows are those of the main one: tokens, masks, shards, vocabulary.

    Compared are digests, of the tokens and of what the teacher saw in every shard. Raises `InputError`, with the fields and the
    `command` that makes the cache anew.
    """
    differences = differing_fields(_of_rows(main), _of_rows(reader), found_in=f"in that of {name}")
    if not differences:
        shards = [shard for shard in main.description.shard_ids() if shard.split == "train"]
        other = next((shard for shard in shards if main.teacher_saw(shard) != reader.teacher_saw(shard)), None)
        differences = () if other is None else (f"shard {other}: other tokens or masks in that of {name}",)
    if differences:
        raise InputError(
            f"the caches of the main teacher and of {name} (train.ensemble) are not of the same tokens, masks and vocabulary: "
            f"{'; '.join(differences)}; expected both made from one data/tokens with one section masking; run: {command}"
        )


def _of_rows(reader: CacheReader) -> dict[str, object]:
    description, split = reader.description, reader.description.splits["train"]
    return {
        "content": {name: description.content.get(name) for name in ("tokens", "tokenizer")},
        "vocabulary_size": description.vocabulary_size,
        "special_tokens": description.special_tokens,
        "objective": description.objective,
        "train": {
            "variants": split.variants,
            "shards": [list(shard) for shard in split.shards],
            "positions": split.layout.positions,
            "position_fraction": split.layout.position_fraction,
        },
    }


def memory_of_each(readers: Sequence[CacheReader], plan: BatchPlan, wanted: Wanted, memory_bytes: int) -> list[int]:
    """The bytes that the decoded shards of each cache may take, in proportion to their size.

    Raises `ConfigError` where a window of all of them does not fit.
    """
    sizes = [
        decoded_bytes(
            reader, [shard for shard in reader.description.shard_ids() if shard.split == "train"], wanted.targets
        )
        for reader in readers
    ]
    together, needed = sum(sizes), plan.window_shards
    if len(readers) > 1 and memory_bytes // together < needed:
        least = math.ceil(needed * together / 2**30 * 1e4) / 1e4
        raise ConfigError(
            f"machine.shard_memory_gb is {memory_bytes / 2**30:.3g}; allowed: {least:g} or more, as {needed} shards of each of the "
            f"{len(readers)} caches of train.ensemble are in use at a time, up to {together:,} bytes of all (cache.shard_tokens "
            "makes them smaller)"
        )
    return [memory_bytes * size // together for size in sizes]


class Teacher:
    """What the losses read of one teacher in a batch: decoded targets, and logits by its frozen head."""

    def __init__(
        self, decoder: TargetDecoder, head: Head | None, *, share: float = 1.0, name: str | None = None
    ) -> None:
        """`head` is needed where `config.reads_teacher_logits`; `name` is that of a further teacher."""
        self.share = share
        self._decoder, self._head, self._name = decoder, head, name

    @classmethod
    def of(cls, cache: FurtherCache, config: TrainConfig) -> Teacher:
        """The further teacher of a cache."""
        head = Head.load(cache.reader.folder) if config.reads_teacher_logits else None
        return cls(decoder_for(cache.reader.description, "train"), head, share=cache.share, name=cache.name)

    def hidden(self, batch: Batch) -> Tensor | None:
        """The last hidden state of the batch's rows, f4 (R, H); None where the losses read none."""
        own = self._own(batch)
        return self._decoder.hidden(own) if "hidden" in own else None

    def targets(self, batch: Batch, hidden: Tensor | None, config: TrainConfig) -> Targets | None:
        """What the student's distribution is compared with in the batch's rows; `hidden` are theirs, or of more rows after them."""
        if config.reads_teacher_logits:
            if self._head is None or hidden is None:
                raise ValueError("kd_source hidden needs the cached head and hidden states")
            self._head = _where_it_is_used(self._head, hidden.device)
            return HiddenTargets(hidden[: len(batch["row_index"])], self._head)
        if config.weights.kd == 0:
            return None
        own = self._own(batch)
        if config.reads_draws:
            return self._decoder.draws(own, config.temperature)
        return self._decoder.top_k(own, config.temperature, renormalise=config.tail == "renormalise")

    def _own(self, batch: Batch) -> Batch:
        return batch if self._name is None else of_further(batch, self._name)


class Teachers:
    """The teachers that a student learns from, whose shares sum to 1."""

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self._teachers = [teacher for teacher in teachers if teacher.share > 0]

    def hidden(self, batch: Batch) -> list[Tensor | None]:
        """`Teacher.hidden` of each."""
        return [teacher.hidden(batch) for teacher in self._teachers]

    def targets(self, batch: Batch, hidden: Sequence[Tensor | None], config: TrainConfig) -> Targets | None:
        """`Teacher.targets` of all together; `hidden` as this class gives it, of these rows or of more after them."""
        members = [
            (teacher.share, targets)
            for teacher, states in zip(self._teachers, hidden, strict=True)
            if (targets := teacher.targets(batch, states, config)) is not None
        ]
        if len(members) < 2:
            return members[0][1] if members else None
        shares, targets_of_each = zip(*members, strict=True)
        return EnsembleTargets(shares, targets_of_each)

    def with_width(self, hidden: Sequence[Tensor | None], width: int) -> Iterator[tuple[float, Tensor]]:
        """Share and hidden states of the teachers whose states have so many values: a cosine needs equal sizes."""
        for teacher, states in zip(self._teachers, hidden, strict=True):
            if states is not None and states.shape[-1] == width:
                yield teacher.share, states


def _where_it_is_used(head: Head, device: torch.device) -> Head:
    """The frozen head on the device, its projection in the dtype that it is computed in; itself where that is so."""
    weight = head.projection[0]
    autocast = torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
    return head if (weight.device, weight.dtype) == (device, dtype) else head.to(device).projecting_in(dtype)
