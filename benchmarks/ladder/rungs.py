"""The rungs: what is kept of a position and how it is coded. A selection that shows each effect, not every combination."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stages.config import PRESETS, CacheConfig, CachedSequences
from storage import Layout

PER_ROW = "hidden int8, a scale per row"
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


def rungs(*, layer: int, hidden_size: int, vocabulary_size: int) -> list[Rung]:
    """All rungs for a teacher whose last block is `layer`."""
    most = vocabulary_size - 1  # there must be a tail
    return [
        *_hidden(layer, hidden_size),
        *_top_k(most),
        *_threshold(most),
        *(Rung(f"{n} draws", "draws", _layout(draws=n, draw_temperature=TEMPERATURE)) for n in DRAWS),
        *_head_and_tail(most),
        *(
            Rung(name, "preset", _preset(name, layer, hidden_size, vocabulary_size), exact_head=name == "lossless")
            for name in PRESETS
        ),
    ]


def _layout(**changes: Any) -> Layout:
    nothing = {"positions": "all", "hidden": "none", "hidden_layers": (), "logits": "none", "top_k": 0}
    return Layout(**{**nothing, **changes})


def _hidden(layer: int, hidden_size: int) -> Iterator[Rung]:
    for coding in ("float32", "float16", "bfloat16"):
        yield Rung(f"hidden {coding}", "hidden", _layout(hidden=coding, hidden_layers=(layer,)))
    for group in (*(group for group in (32, 64, 128) if group < hidden_size), hidden_size):
        name = PER_ROW if group == hidden_size else f"hidden int8, groups of {group}"
        yield Rung(name, "hidden", _layout(hidden="int8", hidden_layers=(layer,), hidden_group=group))


def _top_k(most: int) -> Iterator[Rung]:
    for k in sorted({min(k, most) for k in (8, 16, 32, 64)}):
        yield Rung(f"top-{k}, grid 1/8", "top_k", _layout(logits="grid", top_k=k), TAILS)
    k = min(32, most)
    for coding in ("float32", "float16"):
        yield Rung(f"top-{k}, {coding}", "top_k", _layout(logits=coding, top_k=k), ("rest",))
    for parts in (16, 4):
        grid = _layout(logits="grid", grid_step=1 / parts, top_k=k)
        yield Rung(f"top-{k}, grid 1/{parts}", "top_k", grid, ("rest",))


def _threshold(most: int) -> Iterator[Rung]:
    for temperature, threshold in THRESHOLDS:
        limits = {"threshold": threshold, "threshold_temperature": temperature, "top_k": min(THRESHOLD_MOST, most)}
        layout = _layout(logits="grid", selection="threshold", **limits)
        yield Rung(f"p >= {threshold:g} at T = {temperature:g}, grid 1/8", "threshold", layout, ("rest",))


def _head_and_tail(most: int) -> Iterator[Rung]:
    for k in HEAD_AND_TAIL:
        if k <= most:
            drawn = {"draws": k, "draw_from": "tail", "draw_temperature": TEMPERATURE}
            layout = _layout(logits="float16", top_k=k, **drawn)
            yield Rung(f"top-{k} + {k} draws outside", "head and tail", layout)


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
