"""How far the kept ids with a tail are from the teacher: in closed form, without a second pass over the vocabulary.

tests/benchmarks/test_codec_ladder.py holds it against the dense sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ladder.rungs import Tail
from ladder.teacher import Said

FLOOR = 1e-6
"""Least mass of a tail. Coded logits may sum to more than 1 where the teacher is nearly certain; KL to an empty tail is infinite."""


@dataclass(frozen=True)
class Truncated:
    """The kept ids of R rows, and what a reader takes their logits for."""

    ids: Tensor
    """i8 (R, k), those of the teacher's best in order; a shorter row repeats its first."""
    kept: Tensor
    """Bool (R, k): which of them count."""
    log_q: Tensor
    """f8 (R, k): log-probabilities as decoded, at `temperature`."""
    temperature: float

    def mass_kept(self, said: Said) -> Tensor:
        """f8 (R,): the teacher's probability of the kept ids."""
        return self._exact(said).exp().sum(-1)

    def bucket_divergence(self, said: Said) -> Tensor:
        """KL over the kept ids and one bucket for the rest, f8 (R,): the error that coding makes in what the loss reads."""
        return self._divergence(said, None, None)

    def divergence(self, said: Said, unigram: Tensor, tail: Tail) -> Tensor:
        """KL over the whole vocabulary in nats, f8 (R,), the tail's mass spread alike (`rest`) or by `unigram`.

        Infinite for the renormalised ones, which give other ids no probability.
        """
        if tail not in ("rest", "unigram"):
            return torch.full((len(self.ids),), float("inf"), dtype=torch.float64)
        if tail == "unigram":
            return self._divergence(said, unigram, said.sum_p_log_unigram[self.temperature])
        alike = torch.full_like(unigram, 1 / len(unigram))
        return self._divergence(said, alike, alike.log()[:1].expand(len(self.ids)))

    def _exact(self, said: Said) -> Tensor:
        """f8 (R, k): the teacher's own log-probabilities; -inf where an id repeats."""
        logits = said.top_logits[:, : self.ids.shape[1]].double() / self.temperature
        return (logits - said.logsumexp[self.temperature][:, None]).masked_fill(~self.kept, float("-inf"))

    def _divergence(self, said: Said, spread: Tensor | None, sum_p_log_spread: Tensor | None) -> Tensor:
        log_p = self._exact(said)
        p, q = log_p.exp(), self.log_q.exp().masked_fill(~self.kept, 0.0)
        outside, rest = (1 - p.sum(-1)).clamp_min(0.0), (1 - q.sum(-1)).clamp_min(FLOOR)
        total = q.sum(-1) + rest

        def over_kept(values: Tensor) -> Tensor:
            return torch.where(self.kept, p * values, 0.0).sum(-1)

        result: Tensor = over_kept(log_p - self.log_q) - outside * rest.log() + total.log()
        if spread is None or sum_p_log_spread is None:
            result += torch.special.xlogy(outside, outside)
            return result
        log_spread = spread.log()[self.ids]
        left = (1 - torch.where(self.kept, spread[self.ids], 0.0).sum(-1)).clamp_min(torch.finfo(spread.dtype).tiny)
        result += said.sum_p_log_p[self.temperature] - over_kept(log_p)  # sum of p log p outside
        return result - (sum_p_log_spread - over_kept(log_spread)) + outside * left.log()

    def spread_out(self, spread: Tensor) -> Tensor:
        """Dense log-probabilities f4 (R, V): the kept ids as decoded, the rest of the mass by `spread` f8 (V,)."""
        q = self.log_q.exp().masked_fill(~self.kept, 0.0)
        rest = (1 - q.sum(-1, keepdim=True)).clamp_min(FLOOR)
        total = (q.sum(-1, keepdim=True) + rest).log()
        left = 1 - torch.where(self.kept, spread[self.ids], 0.0).sum(-1, keepdim=True)
        dense = (spread.log() + (rest / left).log() - total).float()
        first = (self.log_q - total)[:, :1]
        return dense.scatter_(1, self.ids, torch.where(self.kept, self.log_q - total, first).float())
