"""The distillation losses, and the one owner of how they are reduced.

    L = w_kd T^2 KL(teacher_T || student_T) + w_mlm CE(label, student) + w_cos (1 - cos(h_student, h_teacher))

(Hinton et al. 2015; Sanh et al. 2019.) Each term is a sum over positions divided by its own count over the whole
optimizer step: the caller passes `weight / count` as a scale, so gradient accumulation and several processes need no
further care. Where only a sample of the positions is cached, row weights make the KD and cosine sums estimates of those
over all positions, and the count stays that of all positions: dividing by the sum of weights would bias the ratio.

`distillation_loss` computes KD and CE in one pass over chunks of rows: (rows, V) logits exist for one chunk at a time, and
the gradients for features, weight and bias are made on the way, so the backward pass is a multiplication.
tests/stages/test_losses.py holds it against a dense float64 reference, value and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.divergences import DrawnTargets, HiddenTargets, Targets, TopKTargets, divergence
from stages.heads import filled, row_chunks

__all__ = [
    "CHUNK_ROWS",
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
"""Label of a position that is not predicted."""

CHUNK_ROWS = 512
"""Rows per chunk, at least: each adds once to the (V, H) gradient of the projection, which fewer would make the main work."""


@dataclass(frozen=True)
class DistillationLoss:
    """`total` carries gradients; the sums are detached, for the log."""

    total: Tensor
    kd_sum: Tensor
    """KL in nats over rows, by their weights, without T^2 and the term's own weight."""
    mlm_sum: Tensor
    """Cross-entropy in nats over labelled rows, without weight."""


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
    row_weights: Tensor | None = None,
    chunk_rows: int | None = None,
) -> DistillationLoss:
    """`kd_scale T^2 sum w KL + mlm_scale sum CE` over rows, and the two sums.

    `features` (rows, H) are what the student's projection `weight` (V, H), `bias` (V,) reads; `labels` i8 (rows,) hold
    `IGNORED` where nothing is predicted. `targets` None leaves KD out, and then only labelled rows are computed.
    `row_weights` w, float (rows,), weigh the KL of each row; None: 1.
    `chunk_rows` rows of logits exist at a time; None chooses.
    """
    if targets is None:
        labelled = labels != IGNORED
        features, labels = features[labelled], labels[labelled]
    total, kd_sum, mlm_sum = _ProjectedLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        features, weight, bias, labels, targets, row_weights, temperature, kd_scale, mlm_scale, chunk_rows
    )
    return DistillationLoss(total, kd_sum, mlm_sum)


def cosine_loss_sum(student_hidden: Tensor, teacher_hidden: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Sum over rows of `1 - cos`, by their weights (rows,), from hidden states (rows, H); in float32 or better."""
    distance = 1.0 - F.cosine_similarity(_wide(student_hidden), _wide(teacher_hidden), dim=-1)
    return distance.sum() if row_weights is None else (distance * row_weights).sum()


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
        chunk_rows: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(features.dtype, torch.float32)
        sums = torch.zeros(2, dtype=wide, device=features.device)
        grad_features = torch.empty_like(features)
        grad_weight = torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        for part in row_chunks(features.shape[0], weight.shape[0], at_least=CHUNK_ROWS, exactly=chunk_rows):
            rows, x = part.stop - part.start, filled(features[part])
            grad_logits = torch.zeros(len(x), weight.shape[0], dtype=wide, device=x.device)
            logits = F.linear(x, weight, bias)[:rows].to(wide)
            sums[1] += _cross_entropy(logits, labels[part], mlm_scale, grad_logits[:rows])
            if targets is not None:
                kl, gradient = divergence(logits / temperature, targets, part, temperature)
                if row_weights is not None:
                    kl, gradient = kl * row_weights[part], gradient.mul_(row_weights[part, None])
                sums[0] += kl.sum()
                # d(T^2 KL) / dz = T (d KL / d(z / T))
                grad_logits[:rows].add_(gradient.mul_(kd_scale * temperature))
            grad_logits = grad_logits.to(features.dtype)
            grad_features[part] = (grad_logits @ weight)[:rows]
            grad_weight += grad_logits.T @ x
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        total = kd_scale * temperature**2 * sums[0] + mlm_scale * sums[1]
        kd_sum, mlm_sum = sums[0].clone(), sums[1].clone()
        ctx.mark_non_differentiable(kd_sum, mlm_sum)
        return total, kd_sum, mlm_sum

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight, grad_bias = ctx.saved_tensors
        return (
            grad_total * grad_features,
            grad_total * grad_weight,
            None if grad_bias is None else grad_total * grad_bias,
            *(None,) * 7,
        )


def _cross_entropy(logits: Tensor, labels: Tensor, scale: Tensor | float, grad_logits: Tensor) -> Tensor:
    """Sum of `-log softmax(z)[label]` over labelled rows; adds `scale (softmax(z) - onehot)` to their gradients."""
    labelled = (labels != IGNORED).nonzero().squeeze(1)
    chosen = labels[labelled].unsqueeze(1)
    log_q = torch.log_softmax(logits[labelled], dim=-1)
    loss = -log_q.gather(1, chosen).sum()
    gradient = log_q.exp_()
    gradient.scatter_add_(1, chosen, torch.full_like(chosen, -1, dtype=gradient.dtype))
    grad_logits.index_add_(0, labelled, gradient.mul_(scale))
    return loss


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
