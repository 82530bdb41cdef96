"""What is kept of a row of logits: statistics over the whole vocabulary, and the best ids."""

from __future__ import annotations

import torch
from torch import Tensor


def statistics(logits: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """Largest logit, and per temperature logsumexp and entropy in nats, f4 (rows, 1 + 2 D), of logits (rows, V).

    With e = exp((z - max) / T) and s = sum e: logsumexp = max / T + log s, entropy = logsumexp - (sum e z) / (s T).
    """
    largest = logits.amax(-1)
    columns = [largest]
    for temperature in temperatures:
        weights = (logits - largest[:, None]).div_(temperature).exp_()
        total = weights.sum(-1)
        logsumexp = largest / temperature + total.log()
        # From z - max: near a certain prediction the entropy is a small difference of large numbers otherwise.
        mean = torch.linalg.vecdot(weights, logits - largest[:, None]) / (total * temperature)
        columns += [logsumexp, total.log() - mean]
    return torch.stack(columns, -1)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits (rows, k) and their ids, descending; among equal ones the smaller id first."""
    values, ids = logits.topk(k, dim=-1, sorted=False)
    ids, by_id = ids.sort(dim=-1)
    values, by_value = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_value)


def count_likely(values: Tensor, logsumexp: Tensor, temperature: float, threshold: float) -> Tensor:
    """How many of each row's largest logits `values` (rows, K), descending, have a probability of `threshold` or more.

    i8 (rows,), 1 to K: the best one always counts. `logsumexp` (rows,) is that of the full row at `temperature`.
    """
    likely = (values / temperature - logsumexp[:, None]).exp() >= threshold
    return likely.sum(-1).clamp_min(1)
