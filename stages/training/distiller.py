"""A student with its distillation loss, and what that needs of the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.attention_vectors import AttentionTaps
from stages.batches import Batch, TargetDecoder, Wanted
from stages.config import TrainConfig
from stages.forward_pass import encoder_states
from stages.heads import Head, filled
from stages.losses import distillation_loss
from stages.training.inner_terms import (
    AttentionTerm,
    Counts,
    EnsembleCosineTerm,
    Inside,
    RelationsTerm,
    StatesTerm,
    Term,
    new_projection,
)
from stages.training.prepare_student import prepare_student
from stages.training.teachers import Teacher, Teachers, main_share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("kd", "mlm", "clm", "cos", "mse", "hidden", "relations", "attention")
"""Parts of the loss in the log, unweighted: nats per position, nats per predicted token (masked, next), 1 - cosine per
position, squared difference of the logits per position; of hidden states per position and number in them, nats per position
and relation, squared difference of attention scores."""


def wanted_by(config: TrainConfig) -> Wanted:
    """The stored targets that the losses of a training read."""
    return Wanted(
        hidden=config.reads_last_hidden,
        logits=config.weights.kd > 0 and config.kd_source == "top_k",
        draws=config.reads_draws,
        layers=config.teacher_layers,
        attention=config.attention_parts,
    )


class Distiller(nn.Module):
    """The student and what its loss needs of its teachers."""

    def __init__(
        self,
        student: PreTrainedModel,
        config: TrainConfig,
        decoder: TargetDecoder,
        teacher_head: Head | None,
        *,
        teacher_width: int | None = None,
        further: Sequence[Teacher] = (),
    ) -> None:
        """`teacher_width`: of its hidden states; None is that of the student. `further`: the other teachers of an ensemble.

        Raises `ConfigError` where the student lacks what the parameters are about.
        """
        super().__init__()
        self.student = student
        prepare_student(student, config)
        self._config = config
        self._decoder = decoder
        self._teachers = Teachers([Teacher(decoder, teacher_head, share=main_share(config)), *further])
        self._predicted = "clm" if decoder.objective == "causal" else "mlm"
        self.hidden_projection: nn.Linear | None = None
        """Trained with the student and left behind."""
        if config.hidden_projection and config.reads_states:
            width = Head.of(student).hidden_size
            self.hidden_projection = new_projection(width, teacher_width or width, config.seed)
        self._terms = self._inner_terms()
        self._layers = sorted({layer for term in self._terms for layer in term.layers})
        vectors = {which for term in self._terms for which in term.vectors}
        self._taps: AttentionTaps | None = None
        if vectors:
            self._taps = AttentionTaps(student, sorted({block for _, block in vectors}), {part for part, _ in vectors})

    def _inner_terms(self) -> list[Term]:
        config, weights, terms = self._config, self._config.weights, list[Term]()
        if config.ensemble is not None and config.reads_states:
            terms.append(EnsembleCosineTerm(config, self._decoder, self._teachers))
        elif config.reads_states:
            terms.append(StatesTerm(config, self._decoder, self.student, self.hidden_projection))
        if weights.relations > 0:
            terms.append(RelationsTerm(config, self._decoder, self.student))
        if weights.attention > 0:
            terms.append(AttentionTerm(config, self._decoder, self.student))
        return terms

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
        inside = self._inside(batch)
        rows = inside.rows
        head = Head.of(self.student)
        weight, bias = head.projection
        of_step = Counts(*counts.clamp_min(1).unbind())
        label_count = of_step.labelled
        # Without a loss on the teacher's logits only what is predicted goes through the head.
        kd_positions = config.kd_positions if weights.kd + weights.mse > 0 else "masked"
        of_kd, kd_count = of_step.of_rows(kd_positions, batch)
        features = rows[: len(of_kd["row_index"])]
        unit = self._unit(kd_count)
        loss = distillation_loss(
            head.features(filled(features))[: len(features)],
            weight,
            bias,
            labels=batch["labels"],
            targets=self._teachers.targets(of_kd, inside.teacher_hidden, config),
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
        for term in self._terms:
            for name, of in term.sums(batch, inside, of_step).items():
                total = total + getattr(weights, name) / of.count * of.value
                parts[name] = of.value.detach() / of.count
        zero = torch.zeros_like(loss.kd_sum)
        return total, torch.stack([parts.get(part, zero) for part in PARTS])

    def _inside(self, batch: Batch) -> Inside:
        """One forward pass of the student's encoder, and what the terms read of it."""
        with nullcontext() if self._taps is None else self._taps:
            last, states = encoder_states(self.student, batch["input_ids"], batch["attention_mask"], self._layers)
        index = batch["row_index"]
        return Inside(
            rows=last.flatten(0, 1)[index],
            states={layer: state.flatten(0, 1)[index] for layer, state in states.items()},
            vectors=self._taps,
            teacher_hidden=self._teachers.hidden(batch),
        )

    @staticmethod
    def _unit(count: Tensor) -> Tensor | float:
        """What a position's loss is multiplied by while gradients are made, to be divided by afterwards.

        The loss makes its gradients in the forward pass, before a GradScaler has scaled anything: divided by the number of
        positions they would vanish in float16, whose smallest number is 6e-8.
        """
        device = count.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        return count if half else 1.0
