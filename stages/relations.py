"""Losses on how the positions of a sequence relate to each other: self-attention relations and attention scores.

With x_a (n, d) the part of head a of vectors x (n, W) of the n positions of a sequence, d = W / heads, the scores of two
kinds of vectors are S_a(x, y) = x_a y_a^T / sqrt(d), (n, n). Student and teacher are cut into equally many heads, so neither
their depth nor their width has to be the same.

    relations   sum_t mean_a KL(softmax S_a(x, x)_t of the teacher || that of the student)
                MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, section 3), x being queries, keys or values
    attention   sum_t mean_a mean_u (S_a(q, k)_tu of the student - that of the teacher)^2
                TinyBERT (Jiao et al. 2020, arXiv 1909.10351, eq. 7), q and k being queries and keys

t and u run over real positions, of a causal model u over those up to t. Both are sums over positions, as all losses here
(stages/losses.py): the caller divides by the positions of the whole optimizer step.

Scores are (heads, n, n) for a sequence. They exist for a few sequences and heads at a time, in float32, and become their own
gradients before the next ones take their place: what is kept for the backward pass is as large as the vectors.
tests/stages/test_relations.py holds both against a dense float64 reference, value and gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.divergences import row_dot
from stages.projection import slices

__all__ = ["attention_loss_sum", "laid_out", "relation_loss_sum"]

_CPU_BYTES, _GPU_BYTES = 4 << 20, 256 << 20
"""Of the scores of one side that exist at a time, those of one head of one sequence at least. A CPU keeps them in its caches."""
_UNSEEN = -1e30
"""The score of a position that is not looked at: its probability is 0, and no infinity is subtracted from another."""


def laid_out(rows: Tensor, row_index: Tensor, shape: tuple[int, int]) -> Tensor:
    """Vectors (R, W) of rows at their places in a padded batch of `shape` (S, L): (S, L, W), zeros where there is no row."""
    flat = rows.new_zeros(shape[0] * shape[1], rows.shape[-1])
    return flat.index_copy_(0, row_index, rows).view(*shape, -1)


def relation_loss_sum(student: Tensor, teacher: Tensor, real: Tensor, *, heads: int, causal: bool = False) -> Tensor:
    """Sum over positions of the mean over `heads` of the KL of their relations, in nats.

    `student` (S, L, W) and `teacher` (S, L, W') are queries, keys or values of the same padded batch; `real` (S, L) is not 0 at
    positions that are no padding. Raises `ValueError` where a width is no multiple of `heads`.
    """
    return _of_pairs(_divergences_, (student, None), (teacher, None), real, heads, causal)


def attention_loss_sum(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], real: Tensor, *, heads: int, causal: bool = False
) -> Tensor:
    """Sum over positions of the mean over `heads` and positions of the squared difference of unnormalised attention scores.

    `student` and `teacher` are queries and keys, (S, L, W) each; else as `relation_loss_sum`.
    """
    return _of_pairs(_squares_, student, teacher, real, heads, causal)


Side = tuple[Tensor, Tensor | None]
"""What is multiplied with what, (S, L, W) each; None: the first with itself."""
Comparison = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scores of student and teacher (n, L, L), which are used up, and which of them count, B (n, 1 or L, L) -> a value for each row
(n, L), and its gradient (n, L, L) with respect to the student's scores."""


def _divergences_(ours: Tensor, theirs: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    log_q = ours.masked_fill_(~seen, _UNSEEN).log_softmax(-1)
    log_p = theirs.masked_fill_(~seen, _UNSEEN).log_softmax(-1)
    p = torch.exp(log_p, out=ours)
    return row_dot(p, log_p.sub_(log_q)), log_q.exp_().sub_(p)


def _squares_(ours: Tensor, theirs: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    difference = ours.sub_(theirs).masked_fill_(~seen, 0.0)
    count = seen.sum(-1).clamp_min(1)
    return row_dot(difference, difference) / count, difference.mul_(2.0 / count[..., None])


def _of_pairs(compare_: Comparison, student: Side, teacher: Side, real: Tensor, heads: int, causal: bool) -> Tensor:
    for side in (student, teacher):
        for vectors in side:
            if vectors is not None and vectors.shape[-1] % heads:
                raise ValueError(f"vectors of width {vectors.shape[-1]}; expected a multiple of {heads} heads")
    wants_gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in student)
    loss: Tensor = _PairLoss.apply(compare_, *student, *teacher, real, heads, causal, wants_gradients)  # type: ignore[no-untyped-call]
    return loss


class _PairLoss(torch.autograd.Function):
    """A few heads of sequences at a time, with the gradients of the student's vectors made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        compare_: Comparison,
        first: Tensor,
        second: Tensor | None,
        their_first: Tensor,
        their_second: Tensor | None,
        real: Tensor,
        heads: int,
        causal: bool,
        wants_gradients: bool,
    ) -> Tensor:
        sequences, length, _ = first.shape
        device, wide = first.device, torch.promote_types(first.dtype, torch.float32)

        def by_head(vectors: Tensor) -> Tensor:
            """(S heads, L, d)."""
            heads_apart = vectors.to(wide).reshape(sequences, length, heads, -1).transpose(1, 2)
            return heads_apart.reshape(sequences * heads, length, -1)

        q, their_q = by_head(first), by_head(their_first)
        k, their_k = (one if two is None else by_head(two) for one, two in ((q, second), (their_q, their_second)))
        scale, their_scale = q.shape[-1] ** -0.5, their_q.shape[-1] ** -0.5
        of_q, of_k = (torch.empty_like(q), torch.empty_like(k)) if wants_gradients else (None, None)
        counts = (real != 0).repeat_interleave(heads, 0)
        before = torch.ones(length, length, dtype=torch.bool, device=device).tril_() if causal else None
        total = torch.zeros((), dtype=wide, device=device)
        at_a_time = (_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // (4 * length * length)
        with torch.autocast(device.type, enabled=False):
            for part in slices(len(q), max(1, at_a_time)):
                seen = counts[part, None, :] if before is None else counts[part, None, :] & before
                scaled = q[part] * scale  # there are fewer of these than of the scores
                values, gradient = compare_(scaled @ k[part].mT, (their_q[part] * their_scale) @ their_k[part].mT, seen)
                weights = counts[part].to(wide) / heads
                total += (values * weights).sum()
                if of_q is not None and of_k is not None:
                    gradient *= weights[..., None]
                    of_q[part] = (gradient @ k[part]) * scale
                    of_k[part] = gradient.mT @ scaled

        def together(gradient: Tensor, like: Tensor) -> Tensor:
            heads_apart = gradient.reshape(sequences, heads, length, -1)
            return heads_apart.transpose(1, 2).reshape(like.shape).to(like.dtype)

        of_first = of_second = None
        if of_q is not None and of_k is not None:
            of_first = together(of_q.add_(of_k) if second is None else of_q, first)
            of_second = None if second is None else together(of_k, second)
        ctx.save_for_backward(of_first, of_second)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        first, second = (None if gradient is None else grad_total * gradient for gradient in ctx.saved_tensors)
        return None, first, second, *(None,) * 6
