"""A student with its distillation loss, and what that needs of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.batches import Batch, TargetDecoder, Wanted, labelled_rows
from stages.config import TrainConfig
from stages.heads import Head, filled
from stages.losses import cosine_loss_sum, distillation_loss
from stages.models import encoder_hidden
from stages.training.prepare_student import prepare_student
from stages.training.teachers import Teacher, Teachers, main_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("kd", "mlm", "clm", "cos", "mse")
"""Parts of the loss in the log, unweighted: nats per position, nats per predicted token (masked, next), 1 - cosine per
position, and squared difference of the logits per position."""


def wanted_by(config: TrainConfig) -> Wanted:
    """The stored targets that the losses of a training read."""
    return Wanted(
        hidden=config.reads_teacher_logits or config.weights.cos > 0,
        logits=config.weights.kd > 0 and config.kd_source == "top_k",
        draws=config.reads_draws,
    )


class Distiller(nn.Module):
    """The student and what its loss needs of its teachers."""

    def __init__(
        self,
        student: PreTrainedModel,
        config: TrainConfig,
        decoder: TargetDecoder,
        teacher_head: Head | None,
        further: Sequence[Teacher] = (),
    ) -> None:
        """`further`: the other teachers of an ensemble. Raises `ConfigError` where the student lacks what the parameters are about."""
        super().__init__()
        self.student = student
        prepare_student(student, config)
        self._config = config
        self._decoder = decoder
        self._teachers = Teachers([Teacher(decoder, teacher_head, share=main_share(config)), *further])
        self._predicted = "clm" if decoder.objective == "causal" else "mlm"

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of `PARTS` that are computed: of the ones without a weight, only the prediction of tokens."""
        return tuple(part for part in PARTS if part == self._predicted or getattr(self._config.weights, part) > 0)

    def positions(self, batch: Batch) -> int:
        """The positions that a batch's rows stand for: KD, squared error and cosine are means over them, or over the masked ones."""
        return self._decoder.positions(batch)

    def forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and parts (as `PARTS`) of a micro-batch; `counts` f4 (2,): positions and labelled rows of the whole optimizer step."""
        config, weights = self._config, self._config.weights
        rows = encoder_hidden(self.student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)[
            batch["row_index"]
        ]
        head = Head.of(self.student)
        weight, bias = head.projection
        position_count, label_count = counts.clamp_min(1).unbind()
        teacher_hidden = self._teachers.hidden(batch)
        # Without a loss on the teacher's logits only what is predicted goes through the head.
        kd_positions = config.kd_positions if weights.kd + weights.mse > 0 else "masked"
        of_kd, kd_count = self._restricted(kd_positions, batch, position_count, label_count)
        features = rows[: len(of_kd["row_index"])]
        unit = self._unit(kd_count)
        loss = distillation_loss(
            head.features(filled(features))[: len(features)],
            weight,
            bias,
            labels=batch["labels"],
            targets=self._teachers.targets(of_kd, teacher_hidden, config),
            temperature=config.temperature,
            kd_scale=weights.kd * unit / kd_count,
            mlm_scale=(weights.mlm + weights.clm) * unit / label_count,
            mse_scale=weights.mse * unit / kd_count if weights.mse > 0 else 0.0,
            row_weights=self._decoder.row_weights(of_kd),
        )
        total = loss.total / unit
        parts = {
            "kd": loss.kd_sum / kd_count,
            self._predicted: loss.mlm_sum / label_count,
            "mse": loss.mse_sum / kd_count,
        }
        if weights.cos > 0:
            of_cos, cos_count = self._restricted(config.cos_positions, batch, position_count, label_count)
            count, row_weights = len(of_cos["row_index"]), self._decoder.row_weights(of_cos)
            cos = torch.stack(
                [
                    share * cosine_loss_sum(rows[:count], hidden[:count], row_weights)
                    for share, hidden in self._teachers.with_width(teacher_hidden, rows.shape[-1])
                ]
            ).sum()
            total = total + weights.cos / cos_count * cos
            parts["cos"] = cos.detach() / cos_count
        zero = torch.zeros_like(loss.kd_sum)
        return total, torch.stack([parts.get(part, zero) for part in PARTS])

    @staticmethod
    def _restricted(positions: str, batch: Batch, position_count: Tensor, label_count: Tensor) -> tuple[Batch, Tensor]:
        """The rows that a term is a sum over, and what it is divided by."""
        return (labelled_rows(batch), label_count) if positions == "masked" else (batch, position_count)

    @staticmethod
    def _unit(count: Tensor) -> Tensor | float:
        """What a position's loss is multiplied by while gradients are made, to be divided by afterwards.

        The loss makes its gradients in the forward pass, before a GradScaler has scaled anything: divided by the number of
        positions they would vanish in float16, whose smallest number is 6e-8.
        """
        device = count.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        return count if half else 1.0
