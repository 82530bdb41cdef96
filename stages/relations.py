"""Losses on how the positions of a sequence relate to each other: self-attention relations and attention scores.

With x_a (n, d) the part of head a of vectors x (n, W) of the n positions of a sequence, d = W / heads, the scores of two
kinds of vectors are S_a(x, y) = x_a y_a^T / sqrt(d), (n, n). Student and teacher are cut into equally many heads, so neither
their depth nor their width has to be the same.

    relations   sum_t mean_a KL(softmax S_a(x, x)_t of the teacher || that of the student)
                MiniLMv2 (Wang et al. 2021, arXiv 2012.15828, section 3.1), x being queries, keys or values
    attention   sum_t mean_a mean_u (S_a(q, k)_tu of the student - that of the teacher)^2
                TinyBERT (Jiao et al. 2020, arXiv 1909.10351, eq. 7), q and k being queries and keys

t and u run over real positions, of a causal model u over those up to t. Both are sums over positions, as all losses here
(stages/losses.py): the caller divides by the positions of the whole optimizer step.

Scores are (heads, n, n) for a sequence. They exist for a few sequences at a time, in float32, and become their own gradients
before the next ones take their place: what is kept for the backward pass is as large as the vectors.
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
"""Of the scores of one side that exist at a time; of one sequence at least. A CPU keeps the smaller ones in its caches."""
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
"""Scores of student and teacher (n, heads, L, L), which are used up, and which count, B (n, 1, L, L) -> a value for each row
(n, heads, L), and its gradient (n, heads, L, L) with respect to the student's scores."""


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
    """A few sequences at a time, with the gradients of the student's vectors made in the forward pass."""

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
        sequences, length, width = first.shape
        device, wide = first.device, torch.promote_types(first.dtype, torch.float32)
        at_a_time = (_CPU_BYTES if device.type == "cpu" else _GPU_BYTES) // (4 * heads * length * length)
        before = torch.ones(length, length, dtype=torch.bool, device=device).tril_() if causal else None
        total = torch.zeros((), dtype=wide, device=device)
        of_first = torch.empty_like(first) if wants_gradients else None
        of_second = torch.empty_like(second) if wants_gradients and second is not None else None

        def by_head(vectors: Tensor, part: slice) -> Tensor:
            """(n, heads, L, d)."""
            return vectors[part].to(wide).reshape(-1, length, heads, vectors.shape[-1] // heads).transpose(1, 2)

        def together(gradient: Tensor) -> Tensor:
            return gradient.transpose(1, 2).flatten(2)

        with torch.autocast(device.type, enabled=False):
            for part in slices(sequences, max(1, at_a_time)):
                # Scaled before they are multiplied: there are fewer of them than of the scores.
                q = by_head(first, part) * (width // heads) ** -0.5
                k = by_head(first if second is None else second, part)
                their_q = by_head(their_first, part) * (their_first.shape[-1] // heads) ** -0.5
                their_k = by_head(their_first if their_second is None else their_second, part)
                seen = real[part, None, None, :] != 0
                seen = seen if before is None else seen & before
                values, gradient = compare_(q @ k.mT, their_q @ their_k.mT, seen)
                weights = (real[part, None, :] != 0).to(wide) / heads
                total += (values * weights).sum()
                if of_first is None:
                    continue
                gradient *= weights[..., None]
                of_q = together(gradient @ k) * (width // heads) ** -0.5
                of_k = together(gradient.mT @ q)
                of_first[part] = of_q if of_second is not None else of_q + of_k
                if of_second is not None:
                    of_second[part] = of_k
        ctx.save_for_backward(of_first, of_second)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        first, second = (None if gradient is None else grad_total * gradient for gradient in ctx.saved_tensors)
        return None, first, second, *(None,) * 6
