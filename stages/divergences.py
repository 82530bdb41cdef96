"""KL(teacher || student) at a temperature, for each kind of target, and cross-entropy with labels: value and gradient of each row.

The functions work on a block of rows and in place: what comes in as scaled logits leaves as their gradient. A vocabulary is
long, so what counts is how often a row is read from memory; with s = z / T, m = max s over some ids and e = exp(s - m), all that
is needed of these ids is m and sum e. tests/stages/test_losses.py holds every kind against a dense float64 reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stages.heads import Head, filled


class Targets(Protocol):
    """What the student's distribution is compared with, row by row."""

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> Targets:
        """Those of some rows. `buffer` gives room for so many rows of logits (n, V)."""

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """KL in nats (rows,) from the student's scaled logits z / T (rows, V).

        `scaled` is overwritten with the gradient of `sum(weights * KL)` with respect to it; `weights` (rows,). May be done once.
        """

    def difference(self, logits: Tensor) -> Tensor:
        """The student's logits (rows, V) less the teacher's. Raises `ValueError` where not all of the teacher's are known."""


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's logits (rows, V)."""

    logits: Tensor

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> DenseTargets:
        """As `Targets.of_rows`; a copy where a buffer is offered, as what `divergence_` uses up."""
        return DenseTargets(self.logits[rows] if buffer is None else self.logits[rows].clone())

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """As `Targets.divergence_`: KL = sum p (log p - log q), with gradient q - p. The logits are used up."""
        return _dense_(scaled, self.logits.to(scaled.dtype).div_(temperature), weights)

    def difference(self, logits: Tensor) -> Tensor:
        """As `Targets.difference`."""
        return logits - self.logits


@dataclass(frozen=True)
class HiddenTargets:
    """The teacher's full distribution, rebuilt from its hidden state by its frozen head, at any temperature.

    In the arithmetic of the training: under bfloat16 autocast the logits are rounded as those of a teacher in the loop
    would be (2^-9 relative; at logits near 8 a KL of about 5e-5 nats, less than int8 hidden states cost).
    """

    hidden: Tensor
    """Float (rows, H) of the teacher."""
    head: Head

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> DenseTargets:
        """As `Targets.of_rows`: here the logits are made."""
        hidden = self.hidden[rows]
        features = self.head.features(filled(hidden))
        out = None if buffer is None or torch.is_autocast_enabled(hidden.device.type) else buffer()
        if out is not None and (out.dtype != features.dtype or len(out) < len(features)):
            out = None
        logits = self.head.project(features, None if out is None else out[: len(features)])
        return DenseTargets(logits[: len(hidden)])

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """As `Targets.divergence_`."""
        return self.of_rows(slice(None)).divergence_(scaled, weights, temperature)

    def difference(self, logits: Tensor) -> Tensor:
        """As `Targets.difference`."""
        return self.of_rows(slice(None)).difference(logits)


@dataclass(frozen=True)
class TopKTargets:
    """The teacher's probabilities on its best ids; the rest of the vocabulary is one bucket, on both sides."""

    ids: Tensor
    """i8 (rows, k). A row with fewer ids repeats its first."""
    log_probabilities: Tensor
    """Float (rows, k): `z / T - logsumexp_T` of the full row, so the bucket's mass is known exactly; -inf where an id repeats."""
    renormalise: bool = False
    """Without a bucket: both sides are distributions over these ids alone. Biased; for comparison."""

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> TopKTargets:
        """As `Targets.of_rows`."""
        del buffer
        return TopKTargets(self.ids[rows], self.log_probabilities[rows], self.renormalise)

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """As `Targets.divergence_`, at the temperature of the log-probabilities."""
        del temperature
        log_p = self.log_probabilities.to(scaled.dtype)
        return (_renormalised_ if self.renormalise else _bucket_)(scaled, self.ids, log_p, weights)

    def difference(self, logits: Tensor) -> Tensor:
        """As `Targets.difference`: they are not."""
        del logits
        raise ValueError("the squared difference of logits needs all logits of the teacher (kd_source: hidden)")


@dataclass(frozen=True)
class DrawnTargets:
    """An unbiased estimate of the teacher's full distribution on few ids, so that the gradient is right on average."""

    ids: Tensor
    """i8 (rows, n). An id may stand there more than once."""
    shares: Tensor
    """Float (rows, n): the estimated probability of each, summing to 1 along the row; 0 counts for nothing."""
    entropy: Tensor
    """Float (rows,) in nats, of the teacher at the same temperature: makes the mean value the KL."""

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> DrawnTargets:
        """As `Targets.of_rows`."""
        del buffer
        return DrawnTargets(self.ids[rows], self.shares[rows], self.entropy[rows])

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """As `Targets.divergence_`, at the temperature of the draws: cross-entropy with the shares, less the teacher's entropy."""
        del temperature
        loss = cross_entropy_(scaled, self.ids, self.shares.to(scaled.dtype), weights)
        return loss.sub_(self.entropy.to(scaled.dtype))

    def difference(self, logits: Tensor) -> Tensor:
        """As `Targets.difference`: they are not."""
        del logits
        raise ValueError("the squared difference of logits needs all logits of the teacher (kd_source: hidden)")


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """`sum_j a_j b_j`, (n,), of (n, j) each, in their own dtype: autocast would round what goes into it."""
    with torch.autocast(a.device.type, enabled=False):
        product: Tensor = torch.linalg.vecdot(a, b)
    return product


def cross_entropy_(scaled: Tensor, ids: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
    """`-sum_j share_j log softmax(s)[id_j]`, (n,), of scaled logits (n, V), ids and shares (n, j).

    With S the sum of the shares the gradient is S q_v - share_v; `scaled` is overwritten with `weights` times it.
    """
    at_ids = scaled.gather(1, ids)
    largest, total = _exponentials_(scaled)
    of_all = shares.sum(-1)
    loss = of_all * (largest + total.log()) - row_dot(shares, at_ids)
    scaled.mul_((weights * of_all / total)[:, None])
    scaled.scatter_add_(1, ids, shares.mul(-weights[:, None]))
    return loss


def _dense_(scaled: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """KL (n,) of a full teacher: both scaled logits (n, V). `scaled` becomes `weights (q - p)`; `teacher` is used up."""
    scaled.sub_(scaled.amax(-1, keepdim=True))
    teacher.sub_(teacher.amax(-1, keepdim=True))
    p = teacher.exp()
    # From the difference: the KL is small where both are large.
    difference = row_dot(p, teacher.sub_(scaled))
    p_total, q_total = p.sum(-1), scaled.exp_().sum(-1)
    scaled.mul_((weights / q_total)[:, None]).sub_(p.mul_((weights / p_total)[:, None]))
    return difference / p_total - p_total.log() + q_total.log()


def _exponentials_(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """M = max s and sum exp(s - m), both (n,); `scaled` (n, V) is overwritten with exp(s - m)."""
    # Where every id is left out m is -inf; any finite number serves, as exp(-inf) is 0 all the same.
    largest = scaled.amax(-1).clamp_min(torch.finfo(scaled.dtype).min)
    scaled.sub_(largest[:, None]).exp_()
    return largest, scaled.sum(-1)


def _bucket_(scaled: Tensor, ids: Tensor, log_p: Tensor, weights: Tensor) -> Tensor:
    """KL over the ids and one bucket for all others.

    With r the bucket's mass and m = sum p + r: dKL/ds_v = m q_v - p_v on the support, m q_v - r q_v / Q outside, Q the
    student's mass there. What is outside has a maximum of its own, so neither Q nor q_v / Q is lost where the student is sure.
    """
    kept = log_p > float("-inf")
    p = log_p.exp()
    rest = (1.0 - p.sum(-1)).clamp_min(0.0)
    # Where the support is the whole vocabulary, what is left of 1 is rounding.
    rest.masked_fill_(kept.sum(-1) == scaled.shape[1], 0.0)
    mass = p.sum(-1) + rest
    at_ids = scaled.gather(1, ids)
    inside = at_ids.masked_fill(~kept, float("-inf")).logsumexp(-1)
    scaled.scatter_(1, ids, float("-inf"))
    largest, total = _exponentials_(scaled)
    outside = largest + total.clamp_min(torch.finfo(scaled.dtype).tiny).log()
    everything = torch.logaddexp(inside, outside)
    log_q = at_ids - everything[:, None]
    loss = torch.where(kept, p * (log_p - log_q), 0.0).sum(-1)
    loss += torch.special.xlogy(rest, rest) - rest * (outside - everything)
    of_each = mass * (outside - everything).exp() - rest
    scaled.mul_((weights * of_each / total.clamp_min(1.0))[:, None])
    # A repeated id is the row's first: the same value is written there again.
    of_support = weights[:, None] * (mass[:, None] * log_q.exp() - p)
    scaled.scatter_(1, ids, torch.where(kept, of_support, of_support[:, :1]))
    return loss


def _renormalised_(scaled: Tensor, ids: Tensor, log_p: Tensor, weights: Tensor) -> Tensor:
    """KL between both sides scaled to sum to 1 over the ids: the gradient is their difference there, and 0 elsewhere."""
    kept = log_p > float("-inf")
    log_p = torch.log_softmax(log_p, dim=-1)
    log_q = torch.log_softmax(scaled.gather(1, ids).masked_fill_(~kept, float("-inf")), dim=-1)
    p = log_p.exp()
    loss = torch.where(kept, p * (log_p - log_q), 0.0).sum(-1)
    scaled.zero_().scatter_add_(1, ids, log_q.exp().sub_(p).mul_(weights[:, None]))
    return loss
