"""The rungs: what is kept of a position and how it is coded. A selection that shows each effect, not every combination."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stages.config import PRESETS, CacheConfig, CachedSequences
from storage import Layout

TEMPERATURES = (1.0, 2.0)
TEMPERATURE = 2.0
"""Of training, and of all draws."""
DRAWS = (25, 50, 100, 255)
HEAD_AND_TAIL = (8, 16)
"""Exact ids, and as many draws from what they leave out."""
THRESHOLDS = ((1.0, 1e-2), (1.0, 1e-3), (2.0, 1e-3), (2.0, 1e-4))
"""(temperature, p)."""
THRESHOLD_MOST = 128
"""Ids of a row, at most, with a threshold."""

Family = Literal["hidden", "top_k", "threshold", "draws", "head and tail", "preset"]
Tail = Literal["rest", "unigram", "renormalise", "teacher renormalised"]
TAILS: tuple[Tail, ...] = ("rest", "unigram", "renormalise", "teacher renormalised")
"""`rest`: one bucket on both sides; where its mass has to lie somewhere, on all other ids alike. `unigram`: on the others
by their frequency. `renormalise`: both sides over the kept ids alone. `teacher renormalised`: only the teacher's side."""


@dataclass(frozen=True)
class Rung:
    """One way of keeping a position; `name` is unique."""

    name: str
    family: Family
    layout: Layout
    tails: tuple[Tail, ...] = ()
    """What the loss may take for the ids that are not kept, where logits are read."""
    exact_head: bool = False
    """Read through the head in the cache's own precision, not in the float16 of all presets but `lossless`."""

    @property
    def reads_hidden(self) -> bool:
        """Whether the loss reads the hidden state, and not logits or draws."""
        return self.layout.hidden != "none"


def rungs(*, layer: int, hidden_size: int, vocabulary_size: int) -> Iterator[Rung]:
    """All rungs for a teacher whose last block is `layer`."""

    def layout(**changes: Any) -> Layout:
        nothing = {"positions": "all", "hidden": "none", "hidden_layers": (), "logits": "none", "top_k": 0}
        return Layout(**{**nothing, **changes})

    for coding in ("float32", "float16", "bfloat16"):
        yield Rung(f"hidden {coding}", "hidden", layout(hidden=coding, hidden_layers=(layer,)))
    for group in (32, 64, 128, hidden_size):
        name = "hidden int8, a scale per row" if group == hidden_size else f"hidden int8, groups of {group}"
        if group <= hidden_size:
            yield Rung(name, "hidden", layout(hidden="int8", hidden_layers=(layer,), hidden_group=group))
    for k in (8, 16, 32, 64):
        if k < vocabulary_size:
            yield Rung(f"top-{k}, grid 1/8", "top_k", layout(logits="grid", top_k=k), TAILS)
    k = min(32, vocabulary_size - 1)
    for coding in ("float32", "float16"):
        yield Rung(f"top-{k}, {coding}", "top_k", layout(logits=coding, top_k=k), ("rest",))
    for parts in (16, 4):
        coarse = layout(logits="grid", grid_step=1 / parts, top_k=k)
        yield Rung(f"top-{k}, grid 1/{parts}", "top_k", coarse, ("rest",))
    k = min(64, vocabulary_size - 1)
    yield Rung(f"top-{k}, float16", "top_k", layout(logits="float16", top_k=k), ("rest",))
    for temperature, threshold in THRESHOLDS:
        most = {"top_k": min(THRESHOLD_MOST, vocabulary_size), "threshold_temperature": temperature}
        ragged = layout(logits="grid", selection="threshold", threshold=threshold, **most)
        yield Rung(f"p >= {threshold:g} at T = {temperature:g}, grid 1/8", "threshold", ragged, ("rest",))
    for draws in DRAWS:
        yield Rung(f"{draws} draws", "draws", layout(draws=draws, draw_temperature=TEMPERATURE))
    for k in HEAD_AND_TAIL:
        exact = layout(logits="float16", top_k=k, draws=k, draw_from="tail", draw_temperature=TEMPERATURE)
        yield Rung(f"top-{k} + {k} draws outside", "head and tail", exact)
    for name in PRESETS:
        yield Rung(name, "preset", _preset(name, layer, hidden_size, vocabulary_size), exact_head=name == "lossless")


def _preset(name: Any, layer: int, hidden_size: int, vocabulary_size: int) -> Layout:
    config = CacheConfig(
        preset=name,
        positions="all",
        temperatures=TEMPERATURES,
        shard_tokens=1,
        sequences=CachedSequences(),
        precision="float32",
        attention="sdpa",
        batch_tokens=1,
        top_k=min(PRESETS[name].top_k, vocabulary_size),
    )
    return config.layout("train", teacher_layers=layer, hidden_size=hidden_size, vocabulary_size=vocabulary_size)
