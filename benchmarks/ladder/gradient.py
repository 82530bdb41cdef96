"""How far a rung's targets turn the gradient of a student's encoder: relative L2 distance from that of dense targets.

The loss and the decoder are those of the training. Gradients of the student's projection are left out: with tied word
embeddings they would hide those of the encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ladder.rungs import TEMPERATURE, TEMPERATURES, Rung, Tail
from ladder.stored import Stored
from ladder.teacher import Said, Teacher, in_float16
from ladder.truncated import Truncated
from stages.batches import TargetDecoder, Wanted, to_batch
from stages.divergences import DenseTargets, DrawnTargets, HiddenTargets, Targets, TopKTargets
from stages.draws import draw_ids
from stages.forward_pass import encoder_hidden
from stages.heads import Head, row_chunks
from stages.losses import distillation_loss
from stages.models import load_masked_lm

AVERAGED = (1, 4, 16)
"""Numbers of independent sets of draws whose gradients are averaged."""


class StudentGradient:
    """A trained student on the first sequences of the yardstick, its forward pass done once."""

    def __init__(self, folder: Path, teacher: Teacher, pad_id: int, positions: int) -> None:
        offsets = teacher.sequences.row_offsets
        self.sequences = max(1, int(np.searchsorted(offsets, positions, side="right")) - 1)
        self.rows = int(offsets[self.sequences])
        self._teacher, self._pad_id = teacher, pad_id
        self._chosen = np.arange(self.sequences)
        batch = to_batch(
            teacher.sequences.select(self._chosen), pad_id=pad_id, wanted=Wanted(hidden=False, logits=False)
        )
        student = load_masked_lm(folder)
        states = encoder_hidden(student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)
        head = Head.of(student)
        self._features = head.features(states[batch["row_index"]])
        weight, bias = head.projection
        self._weight, self._bias = weight.detach(), None if bias is None else bias.detach()
        self._parameters = [p for p in student.base_model.parameters() if p.requires_grad]
        self._masked = torch.from_numpy(np.flatnonzero(teacher.masked[: self.rows]))
        everywhere = HiddenTargets(teacher.hidden[: self.rows], teacher.head)
        self._dense = {key: self._gradient(everywhere, *key) for key in self._kinds(TEMPERATURES)}

    def errors(self, targets: Targets, temperature: float) -> dict[str, float]:
        """Relative L2 by kind of position: `all`, and, at the training temperature, `masked` alone."""
        distances = {}
        for key in self._kinds((temperature,)):
            dense = self._dense[key]
            distances[key[1]] = float((self._gradient(targets, *key) - dense).norm() / dense.norm())
        return distances

    def targets(self, rung: Rung, stored: Stored, temperature: float, tail: Tail | None) -> Targets:
        """What the training would make of the stored rows of the batch."""
        decoder = TargetDecoder(rung.layout, TEMPERATURES)
        hidden, draws = rung.reads_hidden, rung.layout.draws > 0
        wanted = Wanted(hidden=hidden, logits=not hidden and rung.layout.top_k > 0, draws=not hidden and draws)
        batch = to_batch(stored.arrays.select(self._chosen), pad_id=self._pad_id, wanted=wanted)
        if hidden:
            head = self._teacher.head if rung.exact_head else in_float16(self._teacher.head)
            return HiddenTargets(decoder.hidden(batch), head)
        if draws:
            return decoder.draws(batch, temperature)
        kept = decoder.top_k(batch, temperature, renormalise=tail == "renormalise")
        if tail == "teacher renormalised":
            entropy = batch["stat"][:, 2 + 2 * TEMPERATURES.index(temperature)]
            return DrawnTargets(kept.ids, kept.log_probabilities.softmax(-1), entropy)
        if tail == "unigram":
            return self._spread(kept, temperature)
        return kept

    def _spread(self, kept: TopKTargets, temperature: float) -> DenseTargets:
        inside = kept.log_probabilities > float("-inf")
        truncated = Truncated(kept.ids, inside, kept.log_probabilities.double(), temperature)
        return DenseTargets((temperature * truncated.spread_out(self._teacher.unigram)).float())

    def averaged(self, rung: Rung, said: Said, sets: int) -> dict[str, float]:
        """The error of the mean gradient over so many independent sets of draws, each of a mask variant of its own.

        The gradient is linear in the shares, so the mean of the gradients is the gradient of the mean.
        """
        layout, k = rung.layout, rung.layout.top_k if rung.layout.draw_from == "tail" else 0
        uniform = torch.cat([self._teacher.uniforms(layout.draws, 1 + i, self.sequences) for i in range(sets)], 1)
        best = said.top_ids[: self.rows, :k]
        drawn = torch.cat(
            [
                draw_ids(
                    self._teacher.head.logits(self._teacher.hidden[part]),
                    uniform[part],
                    TEMPERATURE,
                    best[part] if k else None,
                )
                for part in row_chunks(self.rows, self._teacher.head.vocabulary_size)
            ]
        )
        log_p = said.top_logits[: self.rows, :k].double() / TEMPERATURE - said.logsumexp[TEMPERATURE][: self.rows, None]
        p = log_p.exp()
        shares = ((1 - p.sum(-1, keepdim=True)) / drawn.shape[1]).expand(drawn.shape)
        entropy = -said.sum_p_log_p[TEMPERATURE][: self.rows].float()
        targets = DrawnTargets(torch.cat([best, drawn], 1), torch.cat([p, shares], 1).float(), entropy)
        return self.errors(targets, TEMPERATURE)

    def _kinds(self, temperatures: tuple[float, ...]) -> Iterator[tuple[float, str]]:
        for temperature in temperatures:
            yield temperature, "all"
            if temperature == TEMPERATURE and len(self._masked):
                yield temperature, "masked"

    def _gradient(self, targets: Targets, temperature: float, kind: str) -> Tensor:
        features = self._features
        if kind == "masked":
            features, targets = features[self._masked], _only(targets, self._masked)
        loss = distillation_loss(
            features,
            self._weight,
            self._bias,
            labels=torch.empty(0, dtype=torch.int64),
            targets=targets,
            temperature=temperature,
            kd_scale=1 / len(features),
            mlm_scale=0.0,
        )
        gradients = torch.autograd.grad(loss.total, self._parameters, retain_graph=True, allow_unused=True)
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def _only(targets: Targets, rows: Tensor) -> Targets:
    """The targets of some rows."""
    values = {field.name: getattr(targets, field.name) for field in fields(targets)}
    chosen: Any = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return replace(targets, **chosen)
