"""The cache of a language model beside its teacher: hidden states, attention, and the logits that its head gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from stages.against_teacher.agreement import BATCH, ROUNDING, Measured, turned
from stages.batches import Batch, TargetDecoder, Wanted, decoder_for, to_batch
from stages.config import MachineConfig
from stages.context import Context
from stages.device import torch_dtype
from stages.forward_pass import head_device, input_device
from stages.heads import Head, row_chunks
from stages.model_config import ModelShape
from stages.models import load_language_model
from stages.teacher_loading import spread_of
from stages.teacher_vectors import TeacherVectors
from storage import CacheReader, ShardId, Split, VectorName, decode_vectors, encode_vectors


def compare_language_model(
    reader: CacheReader,
    context: Context,
    chosen: Mapping[ShardId, Sequence[int]],
    *,
    same: bool,
    machine: MachineConfig | None,
) -> tuple[int, tuple[Measured, ...]]:
    """Number of positions and figures of the `chosen` sequences; `same`: they were computed on hardware as it is here.

    Raises as `compare_with_teacher`.
    """
    description, folder = reader.description, context.artefacts.teacher
    made = description.spec["cache"]
    teacher = load_language_model(
        folder,
        objective=description.objective,
        attention=made["attention"],
        dtype=torch_dtype(made["precision"]),
        device=context.device,
        spread=None if machine is None else spread_of(machine, context.artefacts.cache_work),
    )
    sums: dict[Split, _Sums] = {}
    device = head_device(teacher)
    with torch.inference_mode():
        heads = Head.of(teacher), Head.load(reader.folder).to(device)
        exact = heads[0].float()
        for shard, places in chosen.items():
            comparison = _Comparison(
                decoder_for(description, shard.split),
                exact,
                heads[1],
                ROUNDING[made["precision"]][0 if same else 1],
                last_layer=ModelShape.of(description.teacher_config).layers,
            )
            arrays, layout = reader.load(shard), description.splits[shard.split].layout
            for begin in range(0, len(places), BATCH):
                context.stop_if_asked("nothing was changed")
                rows = arrays.select(np.asarray(places[begin : begin + BATCH]))
                wanted = Wanted(
                    hidden=False, logits=True, layers=layout.hidden_layers, attention=layout.attention_vectors
                )
                batch = {
                    name: tensor.to(device)
                    for name, tensor in to_batch(rows, pad_id=description.pad_id, wanted=wanted).items()
                }
                seen = (batch[name].to(input_device(teacher)) for name in ("input_ids", "attention_mask"))
                with TeacherVectors(teacher, layout) as tapped:
                    last, vectors = tapped.of(*seen)
                of_split = sums.setdefault(shard.split, _Sums())
                comparison.add(of_split, _of_rows(last, batch), batch)
                for name, of_layers in vectors.items():
                    for layer, states in zip(layout.layers(name), of_layers, strict=True):
                        comparison.add_vectors(of_split, name, layer, _of_rows(states, batch), batch)
                context.progress.advance(rows.sequence_ids.size, shard=str(shard))
    positions = int(sum(part.total["rows"] for part in sums.values()))
    return positions, tuple(figure for split, part in sums.items() for figure in part.figures(split))


def _of_rows(states: Tensor, batch: Batch) -> Tensor:
    """f4 (R, W) of (S, L, W)."""
    return states.flatten(0, 1)[batch["row_index"]].float()


class _Sums:
    """Of the positions of one split: sums of what is averaged, and the largest of what is bounded for each row."""

    def __init__(self) -> None:
        self.total: defaultdict[str, float] = defaultdict(float)
        self.largest: defaultdict[str, float] = defaultdict(float)
        self.turns: dict[str, Tensor] = {}
        """By what was compared: f8 (3,), the sums of 1 - cosine as found, as the codec makes it, and as rounding does."""

    def figures(self, split: Split) -> Iterator[Measured]:
        rows = max(1.0, self.total["rows"])
        mean = {name: value / rows for name, value in self.total.items()}
        if "kl" in mean:
            yield Measured(split=split, name="KL through the head, nats", found=mean["kl"],
                           limit=(mean["kl_codec"] ** 0.5 + mean["kl_rounding"] ** 0.5) ** 2)  # fmt: skip
        for name, turns in self.turns.items():
            yield Measured.of_turns(split, name, turns / rows)
        if "kl_top" in mean:
            yield Measured(
                split=split, name="KL over the cached ids, nats", found=mean["kl_top"], limit=mean["kl_top_limit"]
            )
        if "agree" in mean:
            yield Measured(split=split, name="top-1 agreement", found=mean["agree"], at_least=True,
                           limit=max(0.0, mean["agree_codec"] - mean["close"]))  # fmt: skip
        yield Measured(split=split, name="largest difference of logsumexp, nats", found=self.largest["logsumexp"],
                       limit=self.largest["rounding"])  # fmt: skip


class _Comparison:
    """Compares rows of one split with the teacher's hidden states for the same tokens."""

    def __init__(
        self, decoder: TargetDecoder, head: Head, cached_head: Head, rounding: float, *, last_layer: int
    ) -> None:
        self._decoder, self._head, self._cached_head, self._rounding = decoder, head, cached_head, rounding
        self._last_layer = last_layer
        self._has_last = last_layer in decoder.layout.hidden_layers

    def add(self, sums: _Sums, states: Tensor, batch: Batch) -> None:
        """`states` f4 (R, H): the teacher's last hidden states of the batch's rows, now."""
        sums.total["rows"] += len(states)
        cached = coded = None
        if self._has_last:
            cached, coded = self._decoder.hidden(batch), self._through_codec("hidden", states)
        for part in row_chunks(len(states), self._head.vocabulary_size):
            now = self._head.logits(states[part]).double()
            bound = self._rounding * (1 + now.abs().amax(-1))
            best, second = now.topk(2).values.unbind(-1)
            sums.total["close"] += float((best - second <= 2 * bound).sum())
            self._add_logsumexp(sums, now, bound, batch["stat"][part])
            if cached is not None and coded is not None:
                self._add_hidden(sums, now, bound, cached[part], coded[part])
            if "top_ids" in batch:
                self._add_top(
                    sums, now, bound, {name: batch[name][part] for name in batch if name.startswith(("top", "stat"))}
                )

    def add_vectors(self, sums: _Sums, name: VectorName, layer: int, states: Tensor, batch: Batch) -> None:
        """`states` f4 (R, W): the teacher's vectors of one cached layer for the batch's rows, now."""
        if name == "hidden":
            cached = self._decoder.hidden(batch, layer)
            what = "hidden states" if layer == self._last_layer else f"hidden states of layer {layer}"
        else:
            cached = self._decoder.attention(batch, name, layer)
            what = f"{name} of block {layer}"
        found = turned(states, cached, self._decoder.layout, name, self._rounding)
        sums.turns[what] = sums.turns.get(what, 0) + found

    def _through_codec(self, name: VectorName, states: Tensor) -> Tensor:
        layout = self._decoder.layout
        stored = encode_vectors(layout, name, states[:, None].cpu().numpy())
        return torch.from_numpy(decode_vectors(layout, name, stored))[:, 0].to(states.device)

    def _add_logsumexp(self, sums: _Sums, now: Tensor, bound: Tensor, stat: Tensor) -> None:
        for index, temperature in enumerate(self._decoder.temperatures):
            difference = ((now / temperature).logsumexp(-1) - stat[:, 1 + 2 * index].double()).abs()
            sums.largest["logsumexp"] = max(sums.largest["logsumexp"], float(difference.max()))
        lowest = min(self._decoder.temperatures)
        sums.largest["rounding"] = max(sums.largest["rounding"], float(bound.max()) / lowest)

    def _add_hidden(self, sums: _Sums, now: Tensor, bound: Tensor, cached: Tensor, coded: Tensor) -> None:
        log_p = now.log_softmax(-1)
        agreed = {}
        for name, states in (("kl", cached), ("kl_codec", coded)):
            logits = self._cached_head.logits(states).double()
            sums.total[name] += float((log_p.exp() * (log_p - logits.log_softmax(-1))).sum().clamp_min(0))
            agreed[name] = float((logits.argmax(-1) == now.argmax(-1)).sum())
        sums.total["kl_rounding"] += float((bound**2 / 2).sum())
        if self._decoder.layout.logits == "none":
            sums.total["agree"] += agreed["kl"]
            sums.total["agree_codec"] += agreed["kl_codec"]

    def _add_top(self, sums: _Sums, now: Tensor, bound: Tensor, batch: Batch) -> None:
        ids, logits = batch["top_ids"], self._decoder.logits(batch).double()
        codec = {
            "float32": torch.zeros_like(bound),
            "float16": logits.abs().amax(-1) / 2048,
            "grid": bound.new_full(bound.shape, self._decoder.layout.grid_step / 2),
        }[self._decoder.layout.logits]
        there = now.gather(1, ids)
        if "top_count" in batch:
            outside = torch.arange(ids.shape[1], device=ids.device) >= batch["top_count"][:, None]
            there, logits = (values.masked_fill(outside, -1e9) for values in (there, logits))
        log_p, log_q = there.log_softmax(-1), logits.log_softmax(-1)
        sums.total["kl_top"] += float((log_p.exp() * (log_p - log_q)).sum().clamp_min(0))
        sums.total["kl_top_limit"] += float(((codec + bound) ** 2 / 2).sum())
        sums.total["agree"] += float((ids[:, 0] == now.argmax(-1)).sum())
        sums.total["agree_codec"] += len(ids)
