"""The distillation losses, and the one owner of how they are reduced.

    L = w_kd T^2 KL(teacher_T || student_T) + w_mlm CE(label, student) + w_cos (1 - cos(h_student, h_teacher))

(Hinton et al. 2015; Sanh et al. 2019.) Each term is a sum over positions divided by its own count over the whole
optimizer step: the caller passes `weight / count` as a scale, so gradient accumulation and several processes need no
further care.

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

from stages.heads import Head, filled, row_chunks

IGNORED = -100
"""Label of a position that is not predicted."""

CHUNK_ROWS = 512
"""Rows per chunk, at least: each adds once to the (V, H) gradient of the projection, which fewer would make the main work."""


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher's full distribution, rebuilt from its hidden state by its frozen head, at any temperature.

    In the arithmetic of the training: under bfloat16 autocast the logits are rounded as those of a teacher in the loop
    would be (2^-9 relative; at logits near 8 a KL of about 5e-5 nats, less than int8 hidden states cost).
    """

    hidden: Tensor
    """Float (rows, H) of the teacher."""
    head: Head


@dataclass(frozen=True)
class TopKTargets:
    """The teacher's probabilities on its k best ids; the rest of the vocabulary is one bucket, on both sides."""

    ids: Tensor
    """i8 (rows, k)."""
    log_probabilities: Tensor
    """Float (rows, k): `z / T - logsumexp_T` of the full row, so the bucket's mass is known exactly."""


@dataclass(frozen=True)
class DistillationLoss:
    """`total` carries gradients; the sums are detached, for the log."""

    total: Tensor
    kd_sum: Tensor
    """KL in nats over rows, without T^2 and weight."""
    mlm_sum: Tensor
    """Cross-entropy in nats over labelled rows, without weight."""


def distillation_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    labels: Tensor,
    targets: HiddenTargets | TopKTargets | None,
    temperature: float,
    kd_scale: Tensor | float,
    mlm_scale: Tensor | float,
    chunk_rows: int | None = None,
) -> DistillationLoss:
    """`kd_scale T^2 sum KL + mlm_scale sum CE` over rows, and the two sums.

    `features` (rows, H) are what the student's projection `weight` (V, H), `bias` (V,) reads; `labels` i8 (rows,) hold
    `IGNORED` where nothing is predicted. `targets` None leaves KD out, and then only labelled rows are computed.
    `chunk_rows` rows of logits exist at a time; None chooses.
    """
    if targets is None:
        labelled = labels != IGNORED
        features, labels = features[labelled], labels[labelled]
    total, kd_sum, mlm_sum = _ProjectedLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        features, weight, bias, labels, targets, temperature, kd_scale, mlm_scale, chunk_rows
    )
    return DistillationLoss(total, kd_sum, mlm_sum)


def cosine_loss_sum(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Sum over rows of `1 - cos`, from hidden states (rows, H); in float32 or better."""
    similarity = F.cosine_similarity(_wide(student_hidden), _wide(teacher_hidden), dim=-1)
    return (1.0 - similarity).sum()


class _ProjectedLoss(torch.autograd.Function):
    """Projection, KD and CE with gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        targets: HiddenTargets | TopKTargets | None,
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
                # d(T^2 KL) / dz = T (d KL / d(z / T))
                sums[0] += _divergence(
                    logits / temperature, targets, part, temperature, kd_scale * temperature, grad_logits[:rows]
                )
            grad_logits = grad_logits.to(features.dtype)
            grad_features[part] = (grad_logits @ weight)[:rows]
            grad_weight += grad_logits.T @ x
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
        ctx.save_for_backward(grad_features, grad_weight, grad_bias)
        total = kd_scale * temperature**2 * sums[0] + mlm_scale * sums[1]
        ctx.mark_non_differentiable(sums)
        return total, sums[0].clone(), sums[1].clone()

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_features, grad_weight, grad_bias = ctx.saved_tensors
        return (
            grad_total * grad_features,
            grad_total * grad_weight,
            None if grad_bias is None else grad_total * grad_bias,
            *(None,) * 6,
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


def _divergence(
    scaled: Tensor,
    targets: HiddenTargets | TopKTargets,
    part: slice,
    temperature: float,
    scale: Tensor | float,
    grad_logits: Tensor,
) -> Tensor:
    """Sum over rows of KL(teacher || student) at T from `scaled` = z / T (rows, V); adds `scale dKL/dscaled`."""
    log_q = torch.log_softmax(scaled, dim=-1)
    if isinstance(targets, HiddenTargets):
        teacher = targets.head.logits(filled(targets.hidden[part]))[: len(scaled)].to(scaled.dtype)
        log_p = torch.log_softmax(teacher / temperature, dim=-1)
        p = log_p.exp()
        loss: Tensor = torch.linalg.vecdot(p, log_p.sub_(log_q)).sum()
        grad_logits.add_(log_q.exp_().sub_(p).mul_(scale))
        return loss
    return _bucket_divergence(
        log_q, targets.ids[part], targets.log_probabilities[part].to(scaled.dtype), scale, grad_logits
    )


def _bucket_divergence(log_q: Tensor, ids: Tensor, log_p: Tensor, scale: Tensor | float, grad_logits: Tensor) -> Tensor:
    """KL over k ids and one bucket for all others.

    With m = sum p + r: dKL/dz_v = m q_v - p_v on the support, m q_v - r q_v / Q outside, Q the student's mass there.
    """
    p = log_p.exp()
    rest = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
    if ids.shape[1] == log_q.shape[1]:
        rest.zero_()  # the support is the whole vocabulary: what is left of 1 is rounding
    mass = p.sum(-1, keepdim=True) + rest
    log_q_support = log_q.gather(1, ids)
    # Summed over the entries outside: 1 - sum over the support would cancel to nothing where the student is sure.
    log_q_rest = log_q.scatter(1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    loss = (p * (log_p - log_q_support)).sum()
    has_rest = rest > 0
    loss += torch.where(
        has_rest, torch.special.xlogy(rest, rest) - rest * log_q_rest.masked_fill(~has_rest, 0.0), 0.0
    ).sum()
    share = torch.where(has_rest, rest / log_q_rest.exp().clamp_min(torch.finfo(log_q.dtype).tiny), 0.0)
    q = log_q.exp()
    gradient = q * (mass - share)
    gradient.scatter_(1, ids, mass * q.gather(1, ids) - p)
    grad_logits.add_(gradient.mul_(scale))
    return loss


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
