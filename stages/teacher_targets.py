"""The teacher's pass over one shard: what it saw, and what it said, ready to be stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.heads import Head, row_chunks
from stages.masking import Masker
from stages.models import encoder_hidden
from stages.sequences import TokenStore
from storage import Layout, ShardId, ShardTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SeenSequences:
    """The tokens of a shard before and after masking (FORMAT.md, section 3)."""

    offsets: npt.NDArray[np.uint32]  # (S + 1,)
    original_ids: npt.NDArray[np.integer[Any]]  # (N,)
    input_ids: npt.NDArray[np.integer[Any]]  # (N,)
    masked: npt.NDArray[np.uint8]  # (N,)

    def rows(self, layout: Layout) -> npt.NDArray[np.uint32] | None:
        """Token index of each cached row, u4 (R,); None where every token has a row."""
        return None if layout.positions == "all" else np.flatnonzero(self.masked).astype(np.uint32)


def mask_shard(tokens: TokenStore, masker: Masker, shard: ShardId, span: tuple[int, int]) -> SeenSequences:
    """Read the shard's sequences (`span` is first id and count) and mask each one."""
    start, count = span
    offsets, original = tokens.split(shard.split).read(start, count)
    input_ids, masked = np.empty_like(original), np.empty(len(original), np.uint8)
    for i in range(count):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        input_ids[part], masked[part] = masker.mask(start + i, shard.variant, original[part])
    return SeenSequences(offsets=offsets.astype(np.uint32), original_ids=original, input_ids=input_ids, masked=masked)


class TargetsComputer:
    """A teacher, ready to turn masked sequences into `ShardTargets`."""

    def __init__(
        self, teacher: PreTrainedModel, *, temperatures: tuple[float, ...], pad_id: int, batch_tokens: int
    ) -> None:
        self._teacher = teacher
        # The head works in float32 whatever the encoder's dtype, as it will when a student rebuilds the logits.
        head = Head.of(teacher)
        self._head = Head(head.steps, {name: tensor.detach().float() for name, tensor in head.tensors.items()})
        self._temperatures = temperatures
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens
        self._device = next(teacher.parameters()).device

    @torch.inference_mode()
    def compute(self, seen: SeenSequences, layout: Layout) -> ShardTargets:
        """All rows of one shard, in float32, in the order of its tokens."""
        row_token = seen.rows(layout)
        of_token = np.arange(len(seen.original_ids)) if row_token is None else row_token.astype(np.int64)
        rows = len(of_token)
        row_of_token = np.full(len(seen.original_ids), -1, np.int64)
        row_of_token[of_token] = np.arange(rows)
        stat = np.empty((rows, 1 + 2 * len(self._temperatures)), np.float32)
        k = layout.top_k
        top_ids = np.empty((rows, k), np.uint32) if k else None
        top_logits = np.empty((rows, k), np.float32) if k else None
        hidden = (
            np.empty((rows, len(layout.hidden_layers), self._head.hidden_size), np.float32)
            if layout.hidden != "none"
            else None
        )
        for sequences in self._batches(seen.offsets):
            states, tokens = self._encode(seen, sequences)
            wanted = row_of_token[tokens]
            kept = np.flatnonzero(wanted >= 0)
            wanted, states = wanted[kept], states[torch.from_numpy(kept).to(self._device)].float()
            if hidden is not None:
                hidden[wanted, 0] = states.cpu().numpy()
            for part, chunk_stat, ids, logits in self._heads(states, k):
                stat[wanted[part]] = chunk_stat
                if top_ids is not None and top_logits is not None:
                    top_ids[wanted[part]], top_logits[wanted[part]] = ids, logits
        return ShardTargets(
            sequence_offsets=seen.offsets,
            original_ids=seen.original_ids,
            input_ids=seen.input_ids,
            masked=seen.masked,
            row_token=row_token,
            stat=stat,
            top_ids=top_ids,
            top_logits=top_logits,
            hidden=hidden,
        )

    def _batches(self, offsets: npt.NDArray[np.uint32]) -> Iterator[npt.NDArray[np.int64]]:
        """Sequences (local indices) in batches of similar length, each at most `batch_tokens` when padded."""
        lengths = np.diff(offsets.astype(np.int64))
        order = np.argsort(-lengths, kind="stable")
        begin = 0
        while begin < len(order):
            size = max(1, self._batch_tokens // int(lengths[order[begin]]))
            yield order[begin : begin + size]
            begin += size

    def _encode(self, seen: SeenSequences, sequences: npt.NDArray[np.int64]) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Hidden states (tokens of the batch, H) without padding, and the token index of each within the shard."""
        starts = seen.offsets[sequences].astype(np.int64)
        lengths = seen.offsets[sequences + 1].astype(np.int64) - starts
        position = np.arange(int(lengths.max()))
        real = position < lengths[:, None]
        tokens = (starts[:, None] + position)[real]
        input_ids = np.full(real.shape, self._pad_id, np.int64)
        input_ids[real] = seen.input_ids[tokens]
        mask = torch.from_numpy(real).to(self._device)
        states = encoder_hidden(self._teacher, torch.from_numpy(input_ids).to(self._device), mask.long())
        return states[mask], tokens

    def _heads(self, states: Tensor, k: int) -> Iterator[tuple[slice, Floats, npt.NDArray[np.int64], Floats]]:
        """Statistics and top-k of hidden states (rows, H), in chunks of rows."""
        for part in row_chunks(len(states), self._head.vocabulary_size):
            logits = self._head.logits(states[part])
            columns = statistics(logits, self._temperatures)
            values, ids = _top_k(logits, k)
            yield (
                part,
                columns.cpu().numpy(),
                ids.cpu().numpy(),
                values.cpu().numpy(),
            )


def statistics(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Largest logit, and per temperature logsumexp and entropy in nats, f4 (rows, 1 + 2 D), of logits (rows, V).

    With e = exp((z - max) / T) and s = sum e: logsumexp = max / T + log s, entropy = logsumexp - (sum e z) / (s T).
    """
    largest = logits.amax(-1)
    columns = [largest]
    for temperature in temperatures:
        weights = (logits - largest[:, None]).div_(temperature).exp_()
        total = weights.sum(-1)
        logsumexp = largest / temperature + total.log()
        # From z - max: near a certain prediction the entropy is a small difference of large numbers otherwise.
        mean = torch.linalg.vecdot(weights, logits - largest[:, None]) / (total * temperature)
        columns += [logsumexp, total.log() - mean]
    return torch.stack(columns, -1)


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits (rows, k) and their ids, descending; among equal ones the smaller id first."""
    values, ids = logits.topk(k, dim=-1, sorted=False)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_value)
