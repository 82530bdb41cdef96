"""What a comparison of a cache with its teacher found, and the limits that it has to keep to.

The two are never equal to the last bit, so each figure has a limit that is worked out from two causes, not guessed:

- *The codec.* What it costs is measured on the spot: the teacher's present hidden states are encoded and decoded with the
  cache's own codec and go through the cache's own head. For logits its bound is known (FORMAT.md, section 4).
- *Rounding.* The teacher runs here in batches of another shape, perhaps on another device: `ROUNDING` says how far its
  logits may move for that, relative to 1 + max |z|; call a row's share of it `b`.

How the two make limits. KL between softmaxes whose logits differ by at most b is at most b^2 / 2 (Hoeffding's lemma), also
over the cached ids alone with b = codec + rounding. Full KL of the codec and of rounding add up as their square roots do
(near zero KL is a squared distance), and so does 1 - cos, rounding turning a vector by about its relative size. logsumexp
moves by no more than b. The best id may change where it is ahead by less than 2 b, and where the codec alone changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.context import Context
from storage import CacheDescription, Layout, ShardId, Split, VectorName, decode_vectors, encode_vectors

ROUNDING = {
    "float32": (256 * 2.0**-24, 4096 * 2.0**-24),
    "float16": (8 * 2.0**-11, 32 * 2.0**-11),
    "bfloat16": (8 * 2.0**-8, 32 * 2.0**-8),
}
"""Relative movement of logits by the precision of the teacher's pass: with the same device, torch and threads, and with others.

In units of the precision's rounding. float32 sums over thousands of terms round in each of them, so that many units come
together; the half precisions add up in float32 and round results only. Another device adds up in another order everywhere.
"""
HARDWARE = ("device", "torch", "threads")
"""The fields of `computed_with` that decide which of the two it is."""
BATCH = 16
"""Sequences that go through the teacher together."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One figure of one split, beside the limit that it must keep to."""

    split: Split
    name: str
    found: float
    limit: float
    at_least: bool = False
    """The limit is a lower one."""

    @property
    def within(self) -> bool:
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    @classmethod
    def of_turns(cls, split: Split, what: str, turns: Tensor) -> Self:
        """1 - cosine, of the mean over rows of what `turned` gives."""
        found, codec, rounding = turns.tolist()
        return cls(split=split, name=f"1 - cosine of {what}", found=found, limit=(codec**0.5 + rounding**0.5) ** 2)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a comparison found."""

    sequences: int
    positions: int
    same_hardware: bool
    """Device, torch and threads are those that the cache was computed with."""
    measured: tuple[Measured, ...]

    @property
    def within(self) -> bool:
        """Whether every figure keeps to its limit."""
        return all(figure.within for figure in self.measured)


def spread(description: CacheDescription, sequences: int) -> dict[ShardId, list[int]]:
    """Which sequences (index within the shard) of each shard: a fixed choice, evenly over all splits and variants."""
    shards = description.shard_ids()
    ends = np.cumsum([description.span(shard)[1] for shard in shards])
    count = min(sequences, int(ends[-1]))
    chosen: dict[ShardId, list[int]] = {}
    for place in (np.arange(count) * 2 + 1) * int(ends[-1]) // (2 * count):
        number = int(np.searchsorted(ends, place, side="right"))
        chosen.setdefault(shards[number], []).append(int(place - (ends[number - 1] if number else 0)))
    return chosen


def same_hardware(computed_with: Mapping[str, Any], context: Context) -> bool:
    """Whether a shard of which the manifest says `computed_with` came from a device, a torch and threads as they are here."""
    return {name: computed_with.get(name) for name in HARDWARE} == hardware(context)


def hardware(context: Context) -> dict[str, str | int]:
    """The fields of `computed_with` that depend on where a process runs, as they are here."""
    here = torch.device(context.device).type, torch.__version__.split("+")[0], context.threads
    return dict(zip(HARDWARE, here, strict=True))


def turned(now: Tensor, cached: Tensor, layout: Layout, name: VectorName, rounding: float) -> Tensor:
    """Sums over rows of 1 - cosine, f8 (3,): between vectors f4 (R, W) of the teacher and the cached ones, by the codec, by rounding."""
    stored = encode_vectors(layout, name, now[:, None].cpu().numpy())
    coded = torch.from_numpy(decode_vectors(layout, name, stored))[:, 0].to(now.device)
    found = [
        (1 - F.cosine_similarity(now.double(), other.double(), dim=-1)).clamp_min(0).sum().cpu()
        for other in (cached, coded)
    ]
    return torch.stack([*found, torch.tensor(len(now) * rounding**2 / 2, dtype=torch.float64)])
