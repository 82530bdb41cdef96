"""The random choices in a cache: which of the tokens that are not masked have a row, and which ids are drawn for a row.

Drawing with replacement from the teacher's distribution gives few ids whose gradient is right on average, where the k
best ids leave one out for good (random sampling knowledge distillation, Anshumann et al. 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.randomness import uniforms, words
from stages.target_selection import Scratch
from storage import Split

_BLOCK = 32
"""Ids whose probabilities are summed up for the first of a draw's two steps."""

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShardUniforms:
    """Uniforms for one mask variant of a split: each depends on (seed, split, variant, sequence id, place) alone."""

    seed: int
    split: Split
    variant: int

    def positions(self, sequence_id: int, tokens: int) -> Doubles:
        """One for each token of a sequence, f8 (tokens,)."""
        return self._of("positions", sequence_id, tokens)

    def draws(self, sequence_id: int, tokens: int, draws: int) -> Doubles:
        """One for each draw of each token of a sequence, f8 (tokens, draws)."""
        return self._of("draws", sequence_id, tokens * draws).reshape(tokens, draws)

    def _of(self, purpose: str, sequence_id: int, count: int) -> Doubles:
        return uniforms(words(f"{purpose}/{self.seed}/{self.split}/{self.variant}", sequence_id, count))


def draw_ids(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    excluded: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Tensor:
    """Ids drawn with replacement from softmax(logits / temperature), i8 (rows, draws), ascending, by inverse CDF.

    `logits` (rows, V); `uniform` f8 (rows, draws) from 0 to 1, both allowed. `excluded` i8 (rows, k) are ids that cannot
    be drawn, the others keeping their proportions; one id may stand there more than once, and one must be left. `scratch`
    is of as many rows.

    A draw finds its block of the vocabulary by the blocks' sums, then its id within the block: sums in double precision
    over the whole vocabulary would cost more than the logits themselves.
    """
    rows, vocabulary_size = logits.shape
    scaled = torch.div(logits, temperature, out=None if scratch is None else scratch.weights)
    if excluded is not None:
        scaled.scatter_(1, excluded, float("-inf"))
    weights = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()
    blocks = F.pad(weights, (0, -vocabulary_size % _BLOCK)).reshape(rows, -(-vocabulary_size // _BLOCK), _BLOCK)
    block, share = _invert(blocks.sum(-1), uniform)
    chosen = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))
    place, _ = _invert(chosen, share[:, :, None])
    return (block * _BLOCK + place.squeeze(-1)).sort(dim=-1)[0]


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse CDF along the last axis: indices i8 into `weights`, and how far inside its step each `uniform` lies.

    Weights (..., n) are not negative, and not all 0; no index of weight 0 comes out. `uniform` f8 (..., draws) from 0 to 1.
    """
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    # A parallel sum may rise by its rounding where the weight is 0. Taking the highest value so far, and none from there,
    # makes the steps of the CDF those of possible indices, whatever the device.
    cumulative = cumulative.masked_fill_(weights == 0, 0.0).cummax(-1).values
    total = cumulative[..., -1:]
    # The index is the first whose cumulative weight exceeds the target, so the target must stay below the total.
    target = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(cumulative, target, right=True)
    above = cumulative.gather(-1, index)
    below = torch.where(index > 0, cumulative.gather(-1, (index - 1).clamp_min(0)), 0.0)
    return index, (target - below) / (above - below)


def count_draws(
    ordered: npt.NDArray[np.integer[Any]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]], npt.NDArray[np.uint8]]:
    """The draws (rows, draws), ascending, as FORMAT.md's `draw_count` u1 (rows,), `draw_ids` (F,) and `draw_weight` u1 (F,).

    That is, per row: how many different ids there are, which, and how often each was drawn.
    """
    new = np.ones(ordered.shape, bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    places = np.flatnonzero(new)
    weights = np.diff(places, append=ordered.size)
    return new.sum(1).astype(np.uint8), ordered.ravel()[places], weights.astype(np.uint8)
