"""KL and cross-entropy of rows of logits on a GPU: value and gradient in one kernel, which reads each logit twice and writes it once.

The functions of `stages.divergences` go over a row some ten times. A processor's caches hold it meanwhile; a GPU fetches it from its
memory each time, and the loss would take longer than the student. Here a program has one row: a first pass finds maxima and sums, a
second one writes the gradient in the row's place. What differs between kinds of targets is small:

- Dense: the teacher's row is read beside the student's.
- Sparse: the ids of the targets are taken out of the row first (set to -inf, their logits kept), so that sums over the other ids lose
  nothing where the student is sure, and their gradients are written last.

The formulas, and the names of what they need, are those of `stages.divergences`, which is also what tests compare with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.divergences import DenseTargets, DrawnTargets, TopKTargets

if TYPE_CHECKING:
    from stages.divergences import Targets

try:  # comes with torch where there are GPUs
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK, _WARPS = 4096, 8
"""Logits that a program holds at a time."""
_NONE, _DENSE, _BUCKET, _DRAWS = range(4)
"""Kinds of targets."""


def is_for(features: Tensor, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for logits of this dtype where the features are."""
    return triton is not None and features.is_cuda and dtype in _DTYPES


def serves(targets: Targets | None) -> bool:
    """Whether there is a kernel for these targets of a chunk."""
    if isinstance(targets, TopKTargets):
        return not targets.renormalise
    return targets is None or isinstance(targets, DenseTargets | DrawnTargets)


def losses_(
    logits: Tensor,
    targets: Targets | None,
    labels: Tensor,
    kd_weights: Tensor,
    mlm_weights: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """KL at the temperature, f4 (rows,), and cross-entropy of the first n rows, f4 (n,), in nats.

    `logits` (rows, V), contiguous along the vocabulary, are overwritten with the gradient of `sum kd_weights T KL + sum mlm_weights CE`
    with respect to them: the T is that of d(z / T), as in `Targets.divergence_`, and so is in `kd_weights` f4 (rows,) already.
    `labels` i8 (n,) and `mlm_weights` f4 (n,) are those of the first n rows. `targets` are such as `serves` says yes to.
    """
    rows, vocabulary = logits.shape
    kl, ce = logits.new_zeros(rows, dtype=torch.float32), logits.new_zeros(len(labels), dtype=torch.float32)
    kind, teacher, ids, shares = _NONE, logits, labels, kl
    if isinstance(targets, DenseTargets):
        kind, teacher = _DENSE, targets.logits
    elif isinstance(targets, TopKTargets):
        kind, ids, shares = _BUCKET, targets.ids, targets.log_probabilities
    elif isinstance(targets, DrawnTargets):
        kind, ids, shares = _DRAWS, targets.ids, targets.shares
    k = ids.shape[1] if kind in (_BUCKET, _DRAWS) else 0
    if rows:
        _rows_kernel[(rows,)](
            logits, logits.stride(0), teacher, teacher.stride(0), ids.contiguous(), shares.float().contiguous(), k,
            labels, len(labels), kd_weights.contiguous(), mlm_weights.contiguous(), kl, ce, vocabulary, temperature,
            KIND=kind, K=triton.next_power_of_2(max(k, 1)), BLOCK=min(_BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=_WARPS,
        )  # fmt: skip
    if isinstance(targets, DrawnTargets):
        kl -= targets.entropy
    return kl, ce


def _rows(  # type: ignore[no-untyped-def]  # noqa: ANN202, C901, PLR0912, PLR0915  a kernel is one function
    z_ptr, z_stride, t_ptr, t_stride, ids_ptr, shares_ptr, k,  # noqa: ANN001  Triton looks at no annotations but constexpr
    labels_ptr, labelled, kd_weights_ptr, mlm_weights_ptr, kl_ptr, ce_ptr,  # noqa: ANN001
    vocabulary, temperature, KIND: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,  # noqa: ANN001, N803
):  # fmt: skip
    """One row: see the module. Everything is computed in float32."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    inverse_t = 1.0 / temperature
    columns, lanes = tl.arange(0, BLOCK), tl.arange(0, K)
    label, mlm_weight, z_label = tl.full((), -1, tl.int64), 0.0, 0.0
    if row < labelled:
        label = tl.load(labels_ptr + row)
        mlm_weight = tl.load(mlm_weights_ptr + row)
        z_label = tl.load(z_ptr + label).to(tl.float32)
    kd_weight = tl.load(kd_weights_ptr + row)

    ids, z_ids = tl.zeros((K,), tl.int64), tl.zeros((K,), tl.float32)
    share, is_first = tl.zeros((K,), tl.float32), lanes < 0
    if KIND >= 2:
        ids_ptr += row * k
        shares_ptr += row * k
        here = lanes < k
        ids = tl.load(ids_ptr + lanes, here, other=0)
        is_first = here
        if KIND == 2:
            log_p = tl.load(shares_ptr + lanes, here, other=float("-inf"))
            is_first = log_p > float("-inf")  # an id that repeats has nothing
        else:
            for j in range(k):
                same = ids == tl.load(ids_ptr + j)
                share += tl.where(same, tl.load(shares_ptr + j), 0.0)
                is_first = is_first & ~(same & (lanes > j))
        z_ids = tl.load(z_ptr + ids, is_first, other=0.0).to(tl.float32)
        tl.debug_barrier()  # all have read before one writes
        tl.store(z_ptr + ids, tl.full((K,), float("-inf"), tl.float32).to(z_ptr.dtype.element_ty), is_first)
        tl.debug_barrier()

    # Finite, so that a difference of two of them is a number.
    largest, t_largest = -1e30, -1e30
    total, total_t, t_total, crossed = 0.0, 0.0, 0.0, 0.0
    if KIND == 1:
        t_ptr += row * t_stride
    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        z = tl.load(z_ptr + start + columns, inside, other=float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(largest, tl.max(z, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(z - largest), 0)
        scaled_down = tl.exp((before - largest) * inverse_t)
        total_t = total_t * scaled_down + tl.sum(tl.exp((z - largest) * inverse_t), 0)
        if KIND == 1:
            t = tl.load(t_ptr + start + columns, inside, other=0.0).to(tl.float32)
            t = tl.where(inside, t, -1e30)
            t_before = t_largest
            t_largest = tl.maximum(t_largest, tl.max(t, 0))
            scaled_down = tl.exp((t_before - t_largest) * inverse_t)
            p = tl.exp((t - t_largest) * inverse_t)
            t_total = t_total * scaled_down + tl.sum(p, 0)
            crossed = crossed * scaled_down + tl.sum(p * (t - tl.where(inside, z, 0.0)), 0)

    outside_t = largest * inverse_t + tl.log(tl.maximum(total_t, 1e-37))
    if KIND >= 2:  # what was taken out belongs to the whole
        before = largest
        largest = tl.maximum(largest, tl.max(tl.where(is_first, z_ids, -1e30), 0))
        back = tl.where(is_first, tl.exp(z_ids - largest), 0.0)
        total = total * tl.exp(before - largest) + tl.sum(back, 0)
        back = tl.where(is_first, tl.exp((z_ids - largest) * inverse_t), 0.0)
        total_t = total_t * tl.exp((before - largest) * inverse_t) + tl.sum(back, 0)
    log_total = largest + tl.log(total)
    log_total_t = largest * inverse_t + tl.log(total_t)

    # Of every id outside of the targets: `of_each` times what it has of the temperature's `of_mass`.
    kl, of_each, of_mass, t_log_total, at_ids = 0.0, kd_weight, log_total_t, 0.0, tl.zeros((K,), tl.float32)
    if KIND == 0:
        of_each = 0.0
    if KIND == 1:
        t_log_total = t_largest * inverse_t + tl.log(t_total)
        kl = crossed * inverse_t / t_total - t_log_total + log_total_t
    if KIND == 2:
        p = tl.exp(log_p)
        log_q = z_ids * inverse_t - log_total_t
        of_support = tl.sum(p, 0)
        rest = tl.maximum(1.0 - of_support, 0.0)
        rest = tl.where(tl.sum(is_first.to(tl.int32), 0) == vocabulary, 0.0, rest)
        mass = of_support + rest
        q_rest = outside_t - log_total_t
        kl = tl.sum(p * (tl.where(is_first, log_p, 0.0) - log_q), 0)
        kl += tl.where(rest > 0.0, rest * (tl.log(tl.maximum(rest, 1e-37)) - q_rest), 0.0)
        of_each, of_mass = kd_weight * (mass * tl.exp(q_rest) - rest), outside_t
        at_ids = kd_weight * (mass * tl.exp(log_q) - p)
    if KIND == 3:
        log_q = z_ids * inverse_t - log_total_t
        mass = tl.sum(tl.where(is_first, share, 0.0), 0)
        kl = mass * log_total_t - tl.sum(tl.where(is_first, share * z_ids, 0.0), 0) * inverse_t
        of_each = kd_weight * mass
        at_ids = kd_weight * (mass * tl.exp(log_q) - share)
    tl.store(kl_ptr + row, kl)
    if row < labelled:
        tl.store(ce_ptr + row, log_total - z_label)

    for start in range(0, vocabulary, BLOCK):
        inside = start + columns < vocabulary
        z = tl.load(z_ptr + start + columns, inside, other=float("-inf")).to(tl.float32)
        gradient = of_each * tl.exp(z * inverse_t - of_mass) + mlm_weight * tl.exp(z - log_total)
        if KIND == 1:
            t = tl.load(t_ptr + start + columns, inside, other=float("-inf")).to(tl.float32)
            gradient -= kd_weight * tl.exp(t * inverse_t - t_log_total)
        gradient -= tl.where(start + columns == label, mlm_weight, 0.0)
        tl.store(z_ptr + start + columns, gradient.to(z_ptr.dtype.element_ty), inside)
    if KIND >= 2:
        tl.debug_barrier()
        at_ids += mlm_weight * (tl.exp(z_ids - log_total) - tl.where(ids == label, 1.0, 0.0))
        tl.store(z_ptr + ids, at_ids.to(z_ptr.dtype.element_ty), is_first)


_rows_kernel: Any = None if triton is None else triton.jit(_rows)
