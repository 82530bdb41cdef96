"""A student with its distillation loss, and what that needs of the teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stages.batches import Batch, TargetDecoder, Wanted
from stages.config import TrainConfig
from stages.heads import Head, filled
from stages.losses import HiddenTargets, Targets, cosine_loss_sum, distillation_loss
from stages.models import encoder_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("kd", "mlm", "cos")
"""Parts of the loss in the log, unweighted: nats per position, nats per predicted token, and 1 - cosine per position."""


def wanted_by(config: TrainConfig) -> Wanted:
    """The stored targets that the losses of a training read."""
    kd = config.kd_source if config.weights.kd > 0 else None
    return Wanted(hidden=kd == "hidden" or config.weights.cos > 0, logits=kd == "top_k", draws=config.reads_draws)


class Distiller(nn.Module):
    """The student and what its loss needs of the teacher: a frozen head, or nothing."""

    def __init__(
        self, student: PreTrainedModel, config: TrainConfig, decoder: TargetDecoder, teacher_head: Head | None
    ) -> None:
        super().__init__()
        self.student = student
        if config.freeze_position_embeddings:
            embeddings: Any = cast("Any", student.base_model).get_position_embeddings()
            embeddings.requires_grad_(False)
        self._config = config
        self._decoder = decoder
        self._teacher_head = teacher_head

    def positions(self, batch: Batch) -> int:
        """The positions that KD and cosine are means over."""
        return self._decoder.positions(batch)

    def forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and parts of a micro-batch; `counts` f4 (2,): positions and labelled rows of the whole optimizer step."""
        config = self._config
        rows = encoder_hidden(self.student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)[
            batch["row_index"]
        ]
        head = Head.of(self.student)
        weight, bias = head.projection
        position_count, label_count = counts.clamp_min(1).unbind()
        teacher_hidden = self._decoder.hidden(batch) if "hidden" in batch else None
        row_weights = self._decoder.row_weights(batch)
        loss = distillation_loss(
            head.features(filled(rows))[: len(rows)],
            weight,
            bias,
            labels=batch["labels"],
            targets=self._targets(batch, teacher_hidden),
            temperature=config.temperature,
            kd_scale=config.weights.kd / position_count,
            mlm_scale=config.weights.mlm / label_count,
            row_weights=row_weights,
        )
        total, cos_sum = loss.total, torch.zeros_like(loss.kd_sum)
        if config.weights.cos > 0 and teacher_hidden is not None:
            cos = cosine_loss_sum(rows, teacher_hidden, row_weights)
            total = total + config.weights.cos / position_count * cos
            cos_sum = cos.detach()
        parts = torch.stack([loss.kd_sum / position_count, loss.mlm_sum / label_count, cos_sum / position_count])
        return total, parts

    def _targets(self, batch: Batch, teacher_hidden: Tensor | None) -> Targets | None:
        config = self._config
        if config.weights.kd == 0:
            return None
        if config.reads_draws:
            return self._decoder.draws(batch, config.temperature)
        if config.kd_source == "top_k":
            return self._decoder.top_k(batch, config.temperature, renormalise=config.tail == "renormalise")
        if self._teacher_head is None or teacher_hidden is None:
            raise ValueError("kd_source hidden needs the cached head and hidden states")
        if self._teacher_head.projection[0].device != teacher_hidden.device:
            self._teacher_head = self._teacher_head.to(teacher_hidden.device)
        return HiddenTargets(teacher_hidden, self._teacher_head)
