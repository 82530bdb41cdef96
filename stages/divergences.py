"""KL(teacher || student) at a temperature, for each kind of target: the value of each row and its gradient.

`divergence` works on one chunk of rows. tests/stages/test_losses.py holds every kind against a dense float64 reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.heads import Head, filled


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
    """The teacher's probabilities on its best ids; the rest of the vocabulary is one bucket, on both sides."""

    ids: Tensor
    """i8 (rows, k). A row with fewer ids repeats its first."""
    log_probabilities: Tensor
    """Float (rows, k): `z / T - logsumexp_T` of the full row, so the bucket's mass is known exactly; -inf where an id repeats."""
    renormalise: bool = False
    """Without a bucket: both sides are distributions over these ids alone. Biased; for comparison."""


@dataclass(frozen=True)
class DrawnTargets:
    """An unbiased estimate of the teacher's full distribution on few ids, so that the gradient is right on average."""

    ids: Tensor
    """i8 (rows, n). An id may stand there more than once."""
    shares: Tensor
    """Float (rows, n): the estimated probability of each, summing to 1 along the row; 0 counts for nothing."""
    entropy: Tensor
    """Float (rows,) in nats, of the teacher at the same temperature: makes the mean value the KL."""


Targets = HiddenTargets | TopKTargets | DrawnTargets


def divergence(scaled: Tensor, targets: Targets, part: slice, temperature: float) -> tuple[Tensor, Tensor]:
    """KL in nats (rows,) of the rows `part` of the targets, and its gradient with respect to `scaled` = z / T (rows, V)."""
    log_q = torch.log_softmax(scaled, dim=-1)
    if isinstance(targets, HiddenTargets):
        teacher = targets.head.logits(filled(targets.hidden[part]))[: len(scaled)].to(scaled.dtype)
        log_p = torch.log_softmax(teacher / temperature, dim=-1)
        p = log_p.exp()
        loss = torch.linalg.vecdot(p, log_p.sub_(log_q))
        return loss, log_q.exp_().sub_(p)
    if isinstance(targets, DrawnTargets):
        shares, entropy = targets.shares[part].to(scaled.dtype), targets.entropy[part].to(scaled.dtype)
        return _drawn(log_q, targets.ids[part], shares, entropy)
    log_p = targets.log_probabilities[part].to(scaled.dtype)
    return (_renormalised if targets.renormalise else _bucket)(log_q, targets.ids[part], log_p)


def _drawn(log_q: Tensor, ids: Tensor, shares: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy against the shares s less the teacher's entropy; with m = sum s, the gradient is m q_v - s_v."""
    loss = -torch.linalg.vecdot(shares, log_q.gather(1, ids)) - entropy
    gradient = log_q.exp_().mul_(shares.sum(-1, keepdim=True))
    return loss, gradient.scatter_add_(1, ids, -shares)


def _bucket(log_q: Tensor, ids: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL over the ids and one bucket for all others.

    With m = sum p + r: dKL/dz_v = m q_v - p_v on the support, m q_v - r q_v / Q outside, Q the student's mass there.
    """
    kept = log_p > float("-inf")
    p = log_p.exp()
    rest = (1.0 - p.sum(-1, keepdim=True)).clamp_min(0.0)
    # Where the support is the whole vocabulary, what is left of 1 is rounding.
    rest.masked_fill_(kept.sum(-1, keepdim=True) == log_q.shape[1], 0.0)
    mass = p.sum(-1, keepdim=True) + rest
    log_q_support = log_q.gather(1, ids)
    # Summed over the entries outside: 1 - sum over the support would cancel to nothing where the student is sure.
    log_q_rest = log_q.scatter(1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    has_rest = rest > 0
    on_support = torch.where(kept, p * (log_p - log_q_support), 0.0).sum(-1)
    outside = torch.special.xlogy(rest, rest) - rest * log_q_rest.masked_fill(~has_rest, 0.0)
    loss = on_support + torch.where(has_rest, outside, 0.0).squeeze(-1)
    share = torch.where(has_rest, rest / log_q_rest.exp().clamp_min(torch.finfo(log_q.dtype).tiny), 0.0)
    q = log_q.exp()
    gradient = q * (mass - share)
    of_support = mass * q.gather(1, ids) - p
    # A repeated id is the row's first: the same value is written there again.
    return loss, gradient.scatter_(1, ids, torch.where(kept, of_support, of_support[:, :1]))


def _renormalised(log_q: Tensor, ids: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """KL between both sides scaled to sum to 1 over the ids: the gradient is their difference there, and 0 elsewhere."""
    kept = log_p > float("-inf")
    log_p = torch.log_softmax(log_p, dim=-1)
    log_q_support = torch.log_softmax(log_q.gather(1, ids).masked_fill_(~kept, float("-inf")), dim=-1)
    p = log_p.exp()
    loss = torch.where(kept, p * (log_p - log_q_support), 0.0).sum(-1)
    return loss, torch.zeros_like(log_q).scatter_add_(1, ids, log_q_support.exp_().sub_(p))
