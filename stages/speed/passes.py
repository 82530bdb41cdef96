"""Timed passes over sentences: all contenders take turns, so that what else the machine does meets them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.context import Context
from stages.speed.sentences import Sentences

ROUNDS = 10
"""Turns of each contender in a pass, each over a tenth of the sentences: as many pairs as a ratio has."""

WARM_UP = 2
"""Sentences before a contender's turn that are not counted: they bring its weights and threads back after the others."""

MAX_BATCHES = 20
"""Of each size that throughput is measured with, evenly spaced from the shortest sentences to the longest."""

STOPPED = "nothing was written"

Forward = Callable[[Tensor, Tensor], object]
"""A forward pass over `input_ids` and `attention_mask`, which returns when it is done."""

Contenders = Mapping[tuple[str, str], Forward]
"""By model (`student`, `teacher`) and engine (`torch`, `cuda`, `onnx`, `onnx_int8`)."""


@dataclass(frozen=True)
class Pass:
    """What one contender took for each forward pass, in seconds; a list for each round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return sum(map(sum, self.rounds))

    def figures(self) -> dict[str, float]:
        """Seconds of the whole pass, and milliseconds of a sentence: the median, and what nine of ten stay below."""
        each = sorted(second for taken in self.rounds for second in taken)
        return {
            "pass_seconds": round(self.seconds, 4),
            "latency_ms": round(1000 * statistics.median(each), 4),
            "latency_ms_p90": round(1000 * each[math.ceil(0.9 * len(each)) - 1], 4),
        }


def times_as_fast(fast: Pass, slow: Pass) -> dict[str, float]:
    """How many times as long the slow one took, round by round: the median, and the lowest and highest."""
    ratios = [sum(theirs) / sum(ours) for ours, theirs in zip(fast.rounds, slow.rounds, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


@torch.inference_mode()
def full_pass(contenders: Contenders, sentences: Sentences, context: Context) -> dict[tuple[str, str], Pass]:
    """Every sentence through every contender, one at a time (batch 1). Raises `Interrupted` between turns."""
    inputs = [sentences.batch((number,)) for number in range(len(sentences))]
    parts = [part for start in range(ROUNDS) if (part := inputs[start::ROUNDS])]
    context.progress.begin("one sentence at a time", len(inputs) * len(contenders), "sentences")
    seconds: dict[tuple[str, str], list[tuple[float, ...]]] = {name: [] for name in contenders}
    for part in parts:
        for name, forward in contenders.items():
            context.stop_if_asked(STOPPED)
            for one in part[:WARM_UP]:
                forward(*one)
            seconds[name].append(tuple(_seconds(forward, one) for one in part))
            context.progress.advance(len(part))
    return {name: Pass(tuple(rounds)) for name, rounds in seconds.items()}


@dataclass(frozen=True)
class Throughput:
    """What contenders took for the same batches; a batch is a round."""

    sentences: int
    """In all batches together."""
    passes: Mapping[tuple[str, str], Pass]

    def per_second(self, contender: tuple[str, str]) -> float:
        """Sentences that a contender does in a second."""
        return round(self.sentences / self.passes[contender].seconds, 2)


@torch.inference_mode()
def throughput(contenders: Contenders, sentences: Sentences, batch_size: int, context: Context) -> Throughput:
    """Batches of sentences of like length through every contender, in turn. Raises `Interrupted` between batches.

    Whole batches only, where there is one; at most `MAX_BATCHES`.
    """
    batches = sentences.batches(batch_size)
    batches = [numbers for numbers in batches if len(numbers) == batch_size] or batches
    chosen = batches[:: math.ceil(len(batches) / MAX_BATCHES)]
    count = sum(map(len, chosen))
    context.progress.begin(f"batches of {batch_size}", count, "sentences")
    seconds: dict[tuple[str, str], list[tuple[float, ...]]] = {name: [] for name in contenders}
    for numbers in chosen:
        batch = sentences.batch(numbers)
        for name, forward in contenders.items():
            context.stop_if_asked(STOPPED)
            if numbers is chosen[0]:
                forward(*batch)
            seconds[name].append((_seconds(forward, batch),))
        context.progress.advance(len(numbers))
    return Throughput(count, {name: Pass(tuple(rounds)) for name, rounds in seconds.items()})


def _seconds(forward: Forward, inputs: tuple[Any, Any]) -> float:
    before = time.perf_counter()
    forward(*inputs)
    return time.perf_counter() - before
