"""The distillation losses, and the one owner of how they are reduced.

    L = w_kd T^2 KL(teacher_T || student_T) + w_mlm CE(label, student) + w_cos (1 - cos(h_student, h_teacher))
        + w_mse |z_student - z_teacher|^2

(Hinton et al. 2015; Sanh et al. 2019.) Each term is a sum over positions divided by its own count over the whole
optimizer step: the caller passes `weight / count` as a scale, so gradient accumulation and several processes need no
further care. Where only a sample of the positions is cached, row weights make the KD and cosine sums estimates of those
over all positions, and the count stays that of all positions: dividing by the sum of weights would bias the ratio.

`distillation_loss` computes KD and CE in one pass over chunks of rows: (rows, V) logits exist for one chunk at a time, and
the gradients for features, weight and bias are made on the way, so the backward pass is a multiplication. Inside of a
function that is compiled the losses stay as they are: there is nothing left to fuse, and torch 2.11 would trace what is written in
place into wrong gradients.

tests/stages/test_losses.py holds it against a dense float64 reference, value and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages import loss_kernel
from stages.divergences import DrawnTargets, HiddenTargets, Targets, TopKTargets, cross_entropy_, row_dot
from stages.projection import ChunkedProjection, product_dtype, slices

__all__ = [
    "IGNORED",
    "DistillationLoss",
    "DrawnTargets",
    "HiddenTargets",
    "Targets",
    "TopKTargets",
    "cosine_loss_sum",
    "distillation_loss",
]

IGNORED = -100
"""Label of a position that is not predicted, where labels stand beside all positions."""

_COSINE_ROWS = 1024
_SMALLEST_NORM = 1e-8


@dataclass(frozen=True)
class DistillationLoss:
    """`total` carries gradients; the sums are detached, for the log."""

    total: Tensor
    kd_sum: Tensor
    """KL in nats over rows, by their weights, without T^2 and the term's own weight."""
    mlm_sum: Tensor
    """Cross-entropy in nats over labelled rows, without weight."""
    mse_sum: Tensor
    """Squared difference of logits, summed over the vocabulary and over rows, by their weights; 0 where it has no weight."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def distillation_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    labels: Tensor,
    targets: Targets | None,
    temperature: float,
    kd_scale: Tensor | float,
    mlm_scale: Tensor | float,
    mse_scale: Tensor | float = 0.0,
    row_weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> DistillationLoss:
    """`kd_scale T^2 sum w KL + mlm_scale sum CE + mse_scale sum w |z - z_teacher|^2` over rows, and the three sums.

    `features` (rows, H) are what the student's projection `weight` (V, H), `bias` (V,) reads; `labels` i8 (n,) are those of the
    first n rows, the others are not predicted. `targets` None leaves KD out, and then only labelled rows are computed.
    `row_weights` w, float (rows,), weigh each row; None: 1. `chunk_rows` rows of logits exist at a time; None chooses.

    Raises `ValueError` for an `mse_scale` other than the number 0 with targets that are not dense.
    """
    if targets is None:
        features = features[: len(labels)]
    wants_gradients = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (features, weight, bias)
    )
    results = _ProjectedLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        features, weight, bias, labels, targets, row_weights, temperature, kd_scale, mlm_scale, mse_scale, chunk_rows,
        wants_gradients,
    )  # fmt: skip
    return DistillationLoss(*results)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def cosine_loss_sum(student_hidden: Tensor, teacher_hidden: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Sum over rows of `1 - cos`, by their weights (rows,), from hidden states (rows, H); in float32 or better."""
    wants_gradients = torch.is_grad_enabled() and student_hidden.requires_grad
    loss: Tensor = _CosineLoss.apply(student_hidden, teacher_hidden, row_weights, wants_gradients)  # type: ignore[no-untyped-call]
    return loss


class _CosineLoss(torch.autograd.Function):
    """The same way: a chunk of rows at a time, with the gradient made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student_hidden: Tensor, teacher_hidden: Tensor, row_weights: Tensor | None, wants_gradients: bool
    ) -> Tensor:
        wide = torch.promote_types(student_hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=student_hidden.device)
        gradient = torch.empty_like(student_hidden) if wants_gradients else None
        for part in slices(len(student_hidden), _COSINE_ROWS):
            student, teacher = student_hidden[part].to(wide), teacher_hidden[part].to(wide)
            # As torch.nn.functional.cosine_similarity: a row of zeros has a cosine of 0 with everything.
            norm = torch.linalg.vector_norm(student, dim=-1).clamp_min(_SMALLEST_NORM)
            norms = norm * torch.linalg.vector_norm(teacher, dim=-1).clamp_min(_SMALLEST_NORM)
            cosine = row_dot(student, teacher) / norms
            weights = torch.ones_like(cosine) if row_weights is None else row_weights[part].to(wide)
            total += torch.dot(weights, 1.0 - cosine)
            if gradient is not None:
                # d cos / d s = t / (|s| |t|) - cos s / |s|^2
                towards = student * (weights * cosine / norm.square())[:, None] - teacher * (weights / norms)[:, None]
                gradient[part] = towards.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grad_total.to(gradient.dtype) * gradient, None, None, None


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """What the terms of the loss are, row by row: turns logits into their gradients."""

    labels: Tensor
    kd_weights: Tensor
    """Of the gradient of KL with respect to z / T."""
    mlm_weights: Tensor
    row_weights: Tensor
    temperature: float
    mse_scale: Tensor | float | None

    def plain_(self, logits: Tensor, targets: Targets | None, block: slice) -> Tensor:
        """Sums of KL, CE and squared differences, (3,), of a block of rows, whose `logits` (n, V) become their gradient."""
        labels, weights = self.labels[block, None], self.row_weights[block]
        others: list[Tensor] = []
        kl_sum = mlm_sum = mse_sum = logits.new_zeros((), dtype=weights.dtype)
        wide = logits.to(weights.dtype)
        if len(labels):
            predicted = wide if targets is None else wide[: len(labels)].clone()
            whole = torch.ones((), dtype=wide.dtype, device=wide.device).expand(len(labels), 1)
            mlm_sum = cross_entropy_(predicted, labels, whole, self.mlm_weights[block]).sum()
            others.append(predicted)
        if targets is not None:
            if self.mse_scale is not None:
                difference = targets.difference(wide)
                mse_sum = torch.dot(row_dot(difference, difference), weights)
                others.append(difference.mul_(2 * self.mse_scale * weights[:, None]))
            kl = targets.divergence_(wide.div_(self.temperature), self.kd_weights[block], self.temperature)
            kl_sum = torch.dot(kl, weights)
            for gradient in others:
                wide[: len(gradient)].add_(gradient)
        if wide is not logits:
            logits.copy_(wide)
        return torch.stack([kl_sum, mlm_sum, mse_sum])

    def fused_(self, logits: Tensor, targets: Targets | None, block: slice) -> Tensor:
        """The same by `stages.loss_kernel`."""
        kl, ce = loss_kernel.losses_(
            logits, targets, self.labels[block], self.kd_weights[block], self.mlm_weights[block], self.temperature
        )
        return torch.stack([torch.dot(kl, self.row_weights[block]), ce.sum(), kl.new_zeros(())])


class _ProjectedLoss(torch.autograd.Function):
    """Projection, KD and CE with gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        targets: Targets | None,
        row_weights: Tensor | None,
        temperature: float,
        kd_scale: Tensor | float,
        mlm_scale: Tensor | float,
        mse_scale: Tensor | float,
        chunk_rows: int | None,
        wants_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with_mse = targets is not None and not (isinstance(mse_scale, float | int) and mse_scale == 0)
        fused = loss_kernel.is_for(features, product_dtype(features)) and not with_mse
        projection = ChunkedProjection(
            features, weight, bias, chunk_rows, wants_gradients=wants_gradients, keeps_dtype=fused
        )
        wide, device = projection.wide, features.device
        if row_weights is None:
            row_weights = torch.ones((), dtype=wide, device=device).expand(len(features))
        rows = _Rows(
            labels=labels,
            # d(T^2 KL) / dz = T (d KL / d(z / T))
            kd_weights=(row_weights * (kd_scale * temperature)).to(wide),
            mlm_weights=torch.as_tensor(mlm_scale, dtype=wide, device=device).expand(len(labels)),
            row_weights=row_weights.to(wide),
            temperature=temperature,
            mse_scale=mse_scale if with_mse else None,
        )
        sums = torch.zeros(3, dtype=wide, device=device)
        for chunk, logits in projection.chunks():
            of_chunk = None if targets is None else targets.of_rows(chunk, projection.teacher_buffer)
            for within in slices(len(logits), projection.block_rows):
                z, block = logits[within], slice(chunk.start + within.start, chunk.start + within.stop)
                of_block = None if of_chunk is None else of_chunk.of_rows(within)
                sums += (rows.fused_ if fused and loss_kernel.serves(of_block) else rows.plain_)(z, of_block, block)
                projection.add_bias_gradient(z)
            projection.add_gradients(chunk)
        ctx.save_for_backward(*projection.gradients())
        total = kd_scale * temperature**2 * sums[0] + mlm_scale * sums[1] + mse_scale * sums[2]
        separate = sums[0].clone(), sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(*separate)
        return total, *separate

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # On a CPU it costs nothing to see that there is nothing to multiply; a GPU would have to be waited for.
        if grad_total.device.type != "cpu" or grad_total != 1:
            gradients = [None if gradient is None else grad_total * gradient for gradient in gradients]
        return (*gradients, *(None,) * 9)
