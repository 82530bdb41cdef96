"""Squared differences of hidden states: TinyBERT's loss on embeddings and blocks (Jiao et al. 2020, arXiv 1909.10351, eq. 8 and 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.divergences import row_dot

__all__ = ["squared_difference_sum"]


def squared_difference_sum(student_hidden: Tensor, teacher_hidden: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Sum over rows of `|h_student - h_teacher|^2 / H`, by their weights (rows,), from states (rows, H); in float32 or better."""
    wide = torch.promote_types(student_hidden.dtype, torch.float32)
    difference = student_hidden.to(wide) - teacher_hidden.to(wide)
    squares = row_dot(difference, difference) / difference.shape[-1]
    return squares.sum() if row_weights is None else torch.dot(squares, row_weights.to(wide))
