"""Losses of a student that is fine-tuned on a teacher's cached answers: DistilBERT's second distillation.

`L = w_kd KD + w_task CE + w_hidden (1 - cos)`. KD is `T^2 KL(teacher_T || student_T)` of the classes (Hinton et al. 2015); the squared
difference of scores; of answers the mean of the two KLs over where they begin and where they end. All in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.config import DistillationConfig
from stages.finetuning.batches import CLASS_LOGITS, HIDDEN, LABELLED, TOKEN_LOGITS
from stages.finetuning.outputs import NAMES
from stages.tasks.task import Heads

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The loss of a batch of cached rows. It never waits for the device."""

    config: DistillationConfig
    head: Heads
    scores: bool
    """A score is learned, no classes."""
    token_types: bool
    """Whether the student reads them."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Of a padded batch of `CachedRows`, a scalar."""
        inputs: dict[str, Any] = {name: batch[name] for name in _INPUTS if name in batch}
        if not self.token_types:
            inputs.pop("token_type_ids", None)
        hidden = self.config.weights.hidden > 0
        output = model(**inputs, **({"output_hidden_states": True} if hidden else {}))
        logits = [getattr(output, name).float() for name in NAMES[self.head]]
        return self.of(logits, batch, output.hidden_states[-1] if hidden else None)

    def of(self, logits: list[Tensor], batch: Mapping[str, Tensor], hidden: Tensor | None) -> Tensor:
        """From the student's logits, one (S, C) or two (S, L), and its last hidden states (S, L, H)."""
        weights = self.config.weights
        terms = []
        if weights.kd:
            terms.append(weights.kd * self._kd(logits, batch))
        if weights.task:
            terms.append(weights.task * self._task(logits, batch))
        if hidden is not None:
            terms.append(weights.hidden * hidden_loss(hidden, batch[HIDDEN], batch["attention_mask"]))
        return torch.stack(terms).sum()

    def _kd(self, logits: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        temperature = self.config.temperature
        if self.head == "answers":
            real = batch["attention_mask"] == 1
            taught = batch[TOKEN_LOGITS].unbind(-1)
            return torch.stack(
                [kd_loss(ours, theirs, temperature, real) for ours, theirs in zip(logits, taught, strict=True)]
            ).mean()
        if self.scores:
            return F.mse_loss(logits[0], batch[CLASS_LOGITS])
        return kd_loss(logits[0], batch[CLASS_LOGITS], temperature)

    def _task(self, logits: list[Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        labelled = batch[LABELLED]
        if self.head == "answers":
            places = (batch["start_positions"], batch["end_positions"])
            losses = [
                F.cross_entropy(ours, place, reduction="none") for ours, place in zip(logits, places, strict=True)
            ]
            of_row = torch.stack(losses).mean(0)
        elif self.scores:
            of_row = (logits[0][:, 0] - batch["labels"]) ** 2
        else:
            of_row = F.cross_entropy(logits[0], batch["labels"], reduction="none")
        return (of_row * labelled).sum() / labelled.sum().clamp_min(1)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float, real: Tensor | None = None) -> Tensor:
    """`T^2 KL(teacher_T || student_T)`, mean over the rows of logits f4 (S, C), over the classes that are `real`, bool (S, C)."""
    if real is not None:
        lowest = torch.finfo(student.dtype).min / 2
        student, teacher = student.masked_fill(~real, lowest), teacher.masked_fill(~real, lowest)
    ours, theirs = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    terms = theirs.exp() * (theirs - ours)
    if real is not None:
        terms = terms.masked_fill(~real, 0.0)
    return temperature**2 * terms.sum(-1).mean()


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """`1 - cos` of hidden states (S, L, H), mean over the tokens where `mask` i8 (S, L) is 1."""
    real = mask.to(torch.float32)
    return ((1 - F.cosine_similarity(student.float(), teacher, dim=-1)) * real).sum() / real.sum()
