"""The teacher's pass over one shard: what it saw, and what it said, ready to be stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.draws import ShardUniforms, count_draws, draw_ids
from stages.heads import Head, row_chunks
from stages.masking import SeesTokens
from stages.model_config import ModelShape
from stages.models import encoder_states, head_device, input_device
from stages.sequences import TokenStore
from stages.target_selection import count_likely, statistics, top_k
from storage import Layout, ShardId, ShardTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class SeenSequences:
    """The tokens of a shard before and after masking (FORMAT.md, section 3)."""

    offsets: npt.NDArray[np.uint32]  # (S + 1,)
    original_ids: npt.NDArray[np.integer[Any]]  # (N,)
    input_ids: npt.NDArray[np.integer[Any]]  # (N,)
    masked: npt.NDArray[np.uint8]  # (N,)
    start: int
    """Id of the first sequence."""
    uniforms: ShardUniforms
    """For what is chosen at random beside the masks."""

    def rows(self, layout: Layout) -> npt.NDArray[np.uint32] | None:
        """Token index of each cached row, u4 (R,); None where every token has a row."""
        if layout.positions == "all":
            return None
        cached = self.masked == 1
        if layout.positions == "sampled":
            lengths = np.diff(self.offsets.astype(np.int64))
            uniform = [self.uniforms.positions(self.start + i, int(length)) for i, length in enumerate(lengths)]
            cached |= np.concatenate(uniform) < layout.position_fraction
        return np.flatnonzero(cached).astype(np.uint32)


def mask_shard(
    tokens: TokenStore, masker: SeesTokens, shard: ShardId, span: tuple[int, int], *, seed: int
) -> SeenSequences:
    """Read the shard's sequences (`span` is first id and count) and mask each one; `seed` is that of all other choices."""
    start, count = span
    offsets, original = tokens.split(shard.split).read(start, count)
    input_ids, masked = np.empty_like(original), np.empty(len(original), np.uint8)
    for i in range(count):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        input_ids[part], masked[part] = masker.mask(start + i, shard.variant, original[part])
    return SeenSequences(
        offsets=offsets.astype(np.uint32),
        original_ids=original,
        input_ids=input_ids,
        masked=masked,
        start=start,
        uniforms=ShardUniforms(seed, shard.split, shard.variant),
    )


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
        self._layers = ModelShape.of(teacher.config.to_dict()).layers
        self._input_device, self._device = input_device(teacher), head_device(teacher)

    @torch.inference_mode()
    def compute(self, seen: SeenSequences, layout: Layout) -> ShardTargets:
        """All rows of one shard, in float32, in the order of its tokens."""
        row_token = seen.rows(layout)
        of_token = np.arange(len(seen.original_ids)) if row_token is None else row_token.astype(np.int64)
        row_of_token = np.full(len(seen.original_ids), -1, np.int64)
        row_of_token[of_token] = np.arange(len(of_token))
        columns = self._buffers(len(of_token), layout)
        for sequences in self._batches(seen.offsets):
            states, cached_layers, tokens = self._encode(seen, sequences, layout.hidden_layers)
            kept = np.flatnonzero(row_of_token[tokens] >= 0)
            rows, places = row_of_token[tokens[kept]], torch.from_numpy(kept).to(self._device)
            if cached_layers:
                columns["hidden"][rows] = (
                    torch.stack([layer[places] for layer in cached_layers], 1).float().cpu().numpy()
                )
            uniform = self._draw_uniforms(seen, sequences, layout.draws)[kept]
            for part, values in self._heads(states[places].float(), uniform, layout):
                for name, tensor in values.items():
                    columns[name][rows[part]] = tensor.cpu().numpy()
        return ShardTargets(
            sequence_offsets=seen.offsets,
            original_ids=seen.original_ids,
            input_ids=seen.input_ids,
            masked=seen.masked,
            row_token=row_token,
            stat=columns["stat"],
            hidden=columns.get("hidden"),
            **_kept_logits(columns),
            **_kept_draws(columns),
        )

    def _buffers(self, rows: int, layout: Layout) -> dict[str, Array]:
        """Arrays for all rows by name; what is ragged is as wide as its longest row may be."""
        k = layout.top_k
        wanted: dict[str, tuple[bool, tuple[int, ...], type[np.generic]]] = {
            "stat": (True, (1 + 2 * len(self._temperatures),), np.float32),
            "top_ids": (k > 0, (k,), np.uint32),
            "top_logits": (k > 0, (k,), np.float32),
            "top_count": (layout.selection == "threshold", (), np.uint8),
            "drawn": (layout.draws > 0, (layout.draws,), np.uint32),
            "hidden": (layout.hidden != "none", (len(layout.hidden_layers), self._head.hidden_size), np.float32),
        }
        return {name: np.empty((rows, *shape), dtype) for name, (needed, shape, dtype) in wanted.items() if needed}

    def _batches(self, offsets: npt.NDArray[np.uint32]) -> Iterator[npt.NDArray[np.int64]]:
        """Sequences (local indices) in batches of similar length, each at most `batch_tokens` when padded."""
        lengths = np.diff(offsets.astype(np.int64))
        order = np.argsort(-lengths, kind="stable")
        begin = 0
        while begin < len(order):
            size = max(1, self._batch_tokens // int(lengths[order[begin]]))
            yield order[begin : begin + size]
            begin += size

    def _encode(
        self, seen: SeenSequences, sequences: npt.NDArray[np.int64], layers: tuple[int, ...]
    ) -> tuple[Tensor, list[Tensor], npt.NDArray[np.int64]]:
        """Last hidden state, those of `layers`, and the token index within the shard.

        Each state is (tokens of the batch, H): without padding, one sequence after the other.
        """
        starts = seen.offsets[sequences].astype(np.int64)
        lengths = seen.offsets[sequences + 1].astype(np.int64) - starts
        position = np.arange(int(lengths.max()))
        real = position < lengths[:, None]
        tokens = (starts[:, None] + position)[real]
        input_ids = np.full(real.shape, self._pad_id, np.int64)
        input_ids[real] = seen.input_ids[tokens]
        mask = torch.from_numpy(real).to(self._device)
        below = [layer for layer in layers if layer != self._layers]
        last, states = encoder_states(
            self._teacher,
            torch.from_numpy(input_ids).to(self._input_device),
            mask.long().to(self._input_device),
            below,
        )
        last, states = last[mask], {layer: state[mask] for layer, state in states.items()}
        return last, [states.get(layer, last) for layer in layers], tokens

    def _draw_uniforms(
        self, seen: SeenSequences, sequences: npt.NDArray[np.int64], draws: int
    ) -> npt.NDArray[np.float64]:
        """f8 (tokens of the batch, draws), in the order of `_encode`."""
        lengths = np.diff(seen.offsets.astype(np.int64))[sequences]
        if not draws:
            return np.empty((int(lengths.sum()), 0))
        return np.concatenate(
            [
                seen.uniforms.draws(seen.start + int(sequence), int(length), draws)
                for sequence, length in zip(sequences, lengths, strict=True)
            ]
        )

    def _heads(
        self, states: Tensor, uniform: npt.NDArray[np.float64], layout: Layout
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """What is kept of the rows of hidden states (rows, H), by name of the buffer, in chunks of rows."""
        for part in row_chunks(len(states), self._head.vocabulary_size):
            logits = self._head.logits(states[part])
            kept = {"stat": statistics(logits, self._temperatures)}
            excluded = None
            if layout.top_k:
                kept["top_logits"], kept["top_ids"] = top_k(logits, layout.top_k)
                excluded = kept["top_ids"]
            if layout.selection == "threshold":
                temperature = layout.threshold_temperature
                logsumexp = kept["stat"][:, 1 + 2 * self._temperatures.index(temperature)]
                count = count_likely(kept["top_logits"], logsumexp, temperature, layout.threshold)
                kept["top_count"] = count
                inside = torch.arange(layout.top_k, device=count.device) < count[:, None]
                excluded = torch.where(inside, kept["top_ids"], kept["top_ids"][:, :1])
            if layout.draws:
                kept["drawn"] = draw_ids(
                    logits,
                    torch.from_numpy(uniform[part]).to(logits.device),
                    layout.draw_temperature,
                    excluded if layout.draw_from == "tail" else None,
                )
            yield part, kept


def _kept_logits(columns: dict[str, Array]) -> dict[str, Array | None]:
    """The fields of `ShardTargets` for the cached logits: flat where their number differs from row to row."""
    ids, logits, count = (columns.get(name) for name in ("top_ids", "top_logits", "top_count"))
    if ids is not None and logits is not None and count is not None:
        inside = np.arange(ids.shape[1]) < count[:, None]
        ids, logits = ids[inside], logits[inside]
    return {"top_ids": ids, "top_logits": logits, "top_count": count}


def _kept_draws(columns: dict[str, Array]) -> dict[str, Array]:
    """The fields of `ShardTargets` for the draws; none where there are no draws."""
    if "drawn" not in columns:
        return {}
    return dict(zip(("draw_count", "draw_ids", "draw_weight"), count_draws(columns["drawn"]), strict=True))
