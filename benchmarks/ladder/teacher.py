"""The yardstick: what the teacher said of some positions, dense logits rebuilt from a cached hidden state and the frozen head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ladder.rungs import DRAWS, HEAD_AND_TAIL, TEMPERATURE, TEMPERATURES, THRESHOLD_MOST
from stages.draws import ShardUniforms, count_draws, draw_ids
from stages.heads import Head, row_chunks
from stages.target_selection import count_likely, statistics, top_k
from storage import CacheReader, Layout, ShardArrays, ShardTargets, Split

SPLIT: Split = "validation"
"""Always stored with its hidden states and for all positions, whatever the preset of the train split."""
_UNIGRAM_SHARDS = 4


@dataclass(frozen=True)
class Teacher:
    """R positions of whole sequences, and the head that turns their hidden states into logits."""

    sequences: ShardArrays
    """The sequences as the cache has them."""
    hidden: Tensor
    """f4 (R, H), as decoded from the cache."""
    head: Head
    """In the precision of the cache."""
    unigram: Tensor
    """f8 (V,): how often each id occurs in the train split's first shards, one added."""

    @classmethod
    def of(cls, reader: CacheReader, positions: int) -> Teacher:
        """The first sequences of the split, at least one, that hold at most so many positions together."""
        parts: list[ShardArrays] = []
        for shard in reader.shards(SPLIT):
            parts.append(reader.load(shard))
            if sum(part.rows for part in parts) >= positions:
                break
        everything = ShardArrays.concatenate(parts)
        count = max(1, int(np.searchsorted(everything.row_offsets, positions, side="right")) - 1)
        sequences = everything.select(np.arange(count))
        hidden = sequences.decoded_hidden(reader.description.splits[SPLIT].layout)[:, -1]
        counts = np.ones(reader.description.vocabulary_size, np.int64)
        for shard in reader.shards("train")[:_UNIGRAM_SHARDS]:
            counts += np.bincount(reader.load(shard).original_ids, minlength=len(counts))
        unigram = torch.from_numpy(counts / counts.sum())
        return cls(sequences, torch.from_numpy(np.ascontiguousarray(hidden)), Head.load(reader.folder), unigram)

    @property
    def masked(self) -> npt.NDArray[np.bool_]:
        """(R,)."""
        return self.sequences.masked.astype(np.bool_)

    def uniforms(self, draws: int, variant: int, sequences: int | None = None) -> Tensor:
        """f8 (rows, draws) for the draws of a mask variant, for all or the first so many sequences."""
        uniforms = ShardUniforms(0, SPLIT, variant)
        lengths = np.diff(self.sequences.row_offsets)[:sequences]
        ids = self.sequences.sequence_ids[:sequences]
        pieces = [uniforms.draws(int(i), int(length), draws) for i, length in zip(ids, lengths, strict=True)]
        return torch.from_numpy(np.concatenate(pieces))


@dataclass(frozen=True)
class Said:
    """What one pass over the dense logits gives: all rungs are made of it."""

    stat: npt.NDArray[np.float32]
    """(R, 5), for T = 1 and 2."""
    top_logits: Tensor
    """f4 (R, K), descending."""
    top_ids: Tensor
    """i8 (R, K)."""
    drawn: Tensor
    """i8 (R, most draws) from the whole distribution; its first n columns are n draws."""
    drawn_outside: dict[int, Tensor]
    """By k: i8 (R, k) from what the best k ids leave out."""
    logsumexp: dict[float, Tensor]
    """By temperature, as the next two: f8 (R,)."""
    sum_p_log_p: dict[float, Tensor]
    sum_p_log_unigram: dict[float, Tensor]

    @classmethod
    @torch.inference_mode()
    def by(cls, teacher: Teacher) -> Said:
        """One pass, in chunks of rows."""
        vocabulary_size = teacher.head.vocabulary_size
        uniform, most = teacher.uniforms(max(DRAWS), 0), min(max(THRESHOLD_MOST, 64), vocabulary_size)
        outside = [k for k in HEAD_AND_TAIL if k < vocabulary_size]
        columns: dict[Any, list[Tensor]] = {}
        for part in row_chunks(len(teacher.hidden), vocabulary_size):
            logits = teacher.head.logits(teacher.hidden[part])
            values, ids = top_k(logits, most)
            chunk: dict[Any, Tensor] = {"stat": statistics(logits, TEMPERATURES), "values": values, "ids": ids}
            chunk["drawn"] = draw_ids(logits, uniform[part], TEMPERATURE)
            for k in outside:
                chunk["outside", k] = draw_ids(logits, uniform[part, :k], TEMPERATURE, ids[:, :k])
            for temperature in TEMPERATURES:
                scaled = logits.double() / temperature
                chunk["logsumexp", temperature] = logsumexp = scaled.logsumexp(-1)
                log_p = scaled.sub_(logsumexp[:, None])
                p = log_p.exp()
                chunk["p log p", temperature] = torch.linalg.vecdot(p, log_p)
                chunk["p log u", temperature] = p @ teacher.unigram.log()
            for name, tensor in chunk.items():
                columns.setdefault(name, []).append(tensor)
        whole = {name: torch.cat(parts) for name, parts in columns.items()}
        return cls(
            stat=whole["stat"].numpy(),
            top_logits=whole["values"],
            top_ids=whole["ids"],
            drawn=whole["drawn"],
            drawn_outside={k: whole["outside", k] for k in outside},
            logsumexp={t: whole["logsumexp", t] for t in TEMPERATURES},
            sum_p_log_p={t: whole["p log p", t] for t in TEMPERATURES},
            sum_p_log_unigram={t: whole["p log u", t] for t in TEMPERATURES},
        )

    def targets(self, teacher: Teacher, layout: Layout) -> ShardTargets:
        """What stage one would store of these positions with this layout, not yet encoded."""
        sequences = teacher.sequences
        fields: dict[str, Any] = {"top_ids": None, "top_logits": None, "hidden": None}
        if layout.top_k:
            values, ids = self.top_logits[:, : layout.top_k], self.top_ids[:, : layout.top_k]
            if layout.selection == "threshold":
                column = 1 + 2 * TEMPERATURES.index(layout.threshold_temperature)
                logsumexp = torch.from_numpy(self.stat[:, column])
                count = count_likely(values, logsumexp, layout.threshold_temperature, layout.threshold)
                inside = torch.arange(layout.top_k) < count[:, None]
                values, ids = values[inside], ids[inside]
                fields["top_count"] = count.numpy().astype(np.uint8)
            fields.update(top_ids=ids.contiguous().numpy(), top_logits=values.contiguous().numpy())
        if layout.draws:
            fields.update(zip(("draw_count", "draw_ids", "draw_weight"), count_draws(self.draws(layout)), strict=True))
        if layout.hidden != "none":
            fields["hidden"] = teacher.hidden[:, None].numpy()
        return ShardTargets(
            sequence_offsets=sequences.sequence_offsets,
            original_ids=sequences.original_ids,
            input_ids=sequences.input_ids,
            masked=sequences.masked,
            row_token=None,
            stat=self.stat,
            **fields,
        )

    def draws(self, layout: Layout) -> npt.NDArray[np.int64]:
        """The draws of a layout before they are counted, (R, draws)."""
        drawn = self.drawn if layout.draw_from == "all" else self.drawn_outside[layout.top_k]
        return drawn[:, : layout.draws].numpy()


def in_float16(head: Head) -> Head:
    """The head as all presets but `lossless` store it, read back in float32."""
    return Head(head.steps, {name: tensor.half().float() for name, tensor in head.tensors.items()})


@torch.inference_mode()
def hidden_divergence(teacher: Teacher, states: Mapping[str, tuple[Tensor, Head]]) -> dict[str, dict[float, Tensor]]:
    """KL(teacher || rung) over the whole vocabulary in nats, f8 (R,), by rung and temperature.

    `states` are a rung's hidden states f4 (R, H) and the head they are read through. Softmax and sums are in float64:
    float16 hidden states cost less than a float32 sum over the vocabulary is off.
    """
    found: dict[str, dict[float, list[Tensor]]] = {name: {t: [] for t in TEMPERATURES} for name in states}
    for part in row_chunks(len(teacher.hidden), teacher.head.vocabulary_size):
        logits = teacher.head.logits(teacher.hidden[part]).double()
        log_p = {t: (logits / t).log_softmax(-1) for t in TEMPERATURES}
        for name, (hidden, head) in states.items():
            rebuilt = head.logits(hidden[part]).double()
            for t in TEMPERATURES:
                difference = log_p[t] - (rebuilt / t).log_softmax(-1)
                found[name][t].append(torch.linalg.vecdot(log_p[t].exp(), difference))
    return {name: {t: torch.cat(chunks) for t, chunks in by.items()} for name, by in found.items()}


def mean_by_kind(values: Tensor | npt.NDArray[Any], masked: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Means over all, masked and unmasked positions."""
    array = np.asarray(values, np.float64)
    kinds: Sequence[tuple[str, npt.NDArray[np.bool_]]] = (("masked", masked), ("unmasked", ~masked))
    return {"all": float(array.mean())} | {name: float(array[kind].mean()) for name, kind in kinds if kind.any()}
