"""When a cache pays: arithmetic on seconds, all of the same machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

from stages.config import Config
from stages.planning.sizes import expected_counts
from stages.planning.teacher_probe import Online
from storage import CacheDescription


def stage_one_hours(teacher_seconds: float, write_seconds: float | None, workers: int = 1) -> float:
    """Of stage one on `workers` like the one measured, which share one disk (`write_seconds` None: nothing is known of it).

    Writing goes on beside the teacher, so the slower of the two counts.
    """
    return max(teacher_seconds / workers, write_seconds or 0.0) / 3600


@dataclass(frozen=True, kw_only=True)
class StudentRun:
    """What one training pays for its targets, in seconds, with the teacher in its loop and from the cache."""

    tokens: float
    """That it sees, over all its steps."""
    encoder_seconds: float
    head_seconds: float
    """Of the teacher on these tokens, and of its head on those that have targets, where the losses ask for them."""
    read_seconds: float
    """Of the same targets, from the cache: on one core, although a process of its own does it beside the training."""
    keeps_head: bool
    """Whether the cached hidden states go through the teacher's frozen head (`kd_source: hidden`)."""

    @classmethod
    def of(cls, config: Config, description: CacheDescription, online: Online, read_seconds_per_row: float) -> Self:
        """That of `train` in the parameters."""
        train, plan = config.train, description.splits["train"]
        if train.epochs is not None:
            tokens = float(train.epochs * plan.tokens)
        else:
            tokens = (train.steps or 0) * train.batch_size * plan.tokens / plan.sequences
        counts = expected_counts(config, plan)
        rows = tokens * counts["rows"] / counts["tokens"]
        reads_logits = train.weights.kd > 0 or train.weights.mse > 0
        masked_only = train.kd_positions == "masked"
        head_rows = min(rows, tokens * config.masking.probability) if masked_only else rows
        return cls(
            tokens=tokens,
            encoder_seconds=train.distils * tokens * online.encoder_seconds_per_token,
            head_seconds=reads_logits * head_rows * online.head_seconds_per_row,
            read_seconds=rows * read_seconds_per_row,
            keeps_head=train.reads_teacher_logits,
        )

    @property
    def online_seconds(self) -> float:
        """With the teacher in the loop."""
        return self.encoder_seconds + self.head_seconds

    @property
    def cached_seconds(self) -> float:
        """From the cache."""
        return self.read_seconds + self.keeps_head * self.head_seconds

    def to_break_even(self, cache_seconds: float) -> int | None:
        """The least number of such runs that cost no more from a cache made in `cache_seconds`; None: never."""
        saved = self.online_seconds - self.cached_seconds
        return max(1, math.ceil(cache_seconds / saved)) if saved > 0 else None

    def to_json(self, cache_seconds: float) -> dict[str, Any]:
        """As plain JSON, with what a cache made in `cache_seconds` is worth."""
        return {
            "tokens": round(self.tokens),
            "online_seconds": round(self.online_seconds, 3),
            "cached_seconds": round(self.cached_seconds, 3),
            "of_which_head": round(self.keeps_head * self.head_seconds, 3),
            "cache_seconds": round(cache_seconds, 3),
            "runs_to_break_even": self.to_break_even(cache_seconds),
        }
