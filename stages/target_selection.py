"""What is kept of a row of logits: statistics over the whole vocabulary, and the best ids.

The vocabulary is long, so what counts is how often a row is read from memory: each function goes over it a few times, in
buffers that its caller uses again (`Scratch`), and leaves the rest to what is short.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64
"""Logits of which only the largest is looked at first."""
_SQUARED = 4
"""exp(x / T) is a power of the exponential at a temperature up to so many times T, which is cheaper than a new exponential."""


@dataclass(frozen=True)
class Scratch:
    """Two buffers f4 (rows, V) for `statistics` and for draws, used again for every chunk of rows.

    Fresh ones of this size are mapped anew by the system each time, which on a CPU costs more than the arithmetic on them.
    """

    gaps: Tensor
    weights: Tensor

    @classmethod
    def of(cls, rows: int, vocabulary_size: int, device: torch.device) -> Scratch:
        """Buffers for up to so many rows."""
        return cls(*(torch.empty(rows, vocabulary_size, device=device) for _ in range(2)))

    def of_rows(self, rows: int) -> Scratch:
        """The same buffers, as large as `rows` rows need."""
        return Scratch(self.gaps[:rows], self.weights[:rows])


def statistics(logits: Tensor, temperatures: tuple[float, ...], scratch: Scratch | None = None) -> Tensor:
    """Largest logit, and per temperature logsumexp and entropy in nats, f4 (rows, 1 + 2 D), of logits (rows, V).

    With e = exp((z - max) / T) and s = sum e: logsumexp = max / T + log s, entropy = logsumexp - (sum e z) / (s T).
    `scratch` is of as many rows.
    """
    largest = logits.amax(-1)
    # From z - max: near a certain prediction the entropy is a small difference of large numbers otherwise.
    gaps = torch.sub(logits, largest[:, None], out=None if scratch is None else scratch.gaps)
    weights = torch.empty_like(gaps) if scratch is None else scratch.weights
    columns: dict[float, tuple[Tensor, Tensor]] = {}
    at: float | None = None
    for temperature in sorted(temperatures, reverse=True):
        power = 0.0 if at is None else at / temperature
        if power in range(2, _SQUARED + 1):
            weights.pow_(int(power))
        else:
            torch.div(gaps, temperature, out=weights).exp_()
        at = temperature
        total = weights.sum(-1)
        mean = torch.linalg.vecdot(weights, gaps) / (total * temperature)
        columns[temperature] = largest / temperature + total.log(), total.log() - mean
    return torch.stack([largest, *(column for t in temperatures for column in columns[t])], -1)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits (rows, k) and their ids i8, descending; among equal ones the smaller id first."""
    ids = _largest(logits, k)
    ids = ids.sort(dim=-1)[0]
    values, by_value = logits.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_value)


def count_likely(values: Tensor, logsumexp: Tensor, temperature: float, threshold: float) -> Tensor:
    """How many of each row's largest logits `values` (rows, K), descending, have a probability of `threshold` or more.

    i8 (rows,), 1 to K: the best one always counts. `logsumexp` (rows,) is that of the full row at `temperature`.
    """
    likely = (values / temperature - logsumexp[:, None]).exp() >= threshold
    return likely.sum(-1).clamp_min(1)


def _largest(logits: Tensor, k: int) -> Tensor:
    """Ids i8 (rows, k) of the k largest logits, in no order.

    They lie in the k blocks whose largest logits are largest, or behind the last whole block: the selection proper, which
    is slow, sees a fraction of the row.
    """
    rows, vocabulary_size = logits.shape
    blocks = vocabulary_size // _BLOCK
    if blocks < 2 * k:
        return logits.topk(k, dim=-1, sorted=False)[1]
    whole = blocks * _BLOCK
    best = logits[:, :whole].reshape(rows, blocks, _BLOCK).amax(-1).topk(k, dim=-1, sorted=False)[1]
    place = torch.arange(_BLOCK, device=logits.device)
    behind = torch.arange(whole, vocabulary_size, device=logits.device).expand(rows, -1)
    ids = torch.cat([(best[:, :, None] * _BLOCK + place).flatten(1), behind], -1)
    return ids.gather(-1, logits.gather(-1, ids).topk(k, dim=-1, sorted=False)[1])
