"""Targets of several teachers for the same rows: one pass over the student's logits gives the weighted sum of their losses.

Cross-entropy is linear in the target, so with shares a_i that sum to 1 the loss sum_i a_i KL(p_i || q) is the KL to the mixture
sum_i a_i p_i and a constant, whatever is known of each p_i: all of it, its best ids, or draws from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.divergences import Targets


@dataclass(frozen=True)
class EnsembleTargets:
    """Two or more targets of the same rows, of any kinds."""

    shares: tuple[float, ...]
    """How much each counts; they sum to 1."""
    members: tuple[Targets, ...]
    _rooms: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Buffers for the logits of all members but the first, which has the caller's."""

    def of_rows(self, rows: slice, buffer: Callable[[], Tensor] | None = None) -> EnsembleTargets:
        """As `Targets.of_rows`."""
        offered = (self._room(number, buffer) for number in range(len(self.members)))
        return EnsembleTargets(
            self.shares,
            tuple(member.of_rows(rows, room) for member, room in zip(self.members, offered, strict=True)),
        )

    def divergence_(self, scaled: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """As `Targets.divergence_`: sum_i share_i KL_i. Each member works on a copy of the logits, the last one in place."""
        divergence = torch.zeros_like(scaled[:, 0])
        gradient: Tensor | None = None
        *others, last = zip(self.shares, self.members, strict=True)
        for share, member in others:
            copy = scaled.clone()
            divergence += share * member.divergence_(copy, share * weights, temperature)
            gradient = copy if gradient is None else gradient.add_(copy)
        share, member = last
        divergence += share * member.divergence_(scaled, share * weights, temperature)
        if gradient is not None:
            scaled.add_(gradient)
        return divergence

    def difference(self, logits: Tensor) -> Tensor:
        """As `Targets.difference`: from the mean of the teachers' logits, by their shares.

        The gradient of its square is that of the weighted sum of squares; the value is smaller by the teachers' spread about
        their mean, which no student changes.
        """
        total = torch.zeros_like(logits)
        for share, member in zip(self.shares, self.members, strict=True):
            total.add_(member.difference(logits), alpha=share)
        return total

    def _room(self, number: int, buffer: Callable[[], Tensor] | None) -> Callable[[], Tensor] | None:
        """Room for the logits of a member: two of them must not lie in one buffer."""
        if buffer is None or number == 0:
            return buffer
        offered = buffer

        def own() -> Tensor:
            if number not in self._rooms:
                self._rooms[number] = torch.empty_like(offered())
            return self._rooms[number]

        return own
