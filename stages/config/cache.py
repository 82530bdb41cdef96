"""Parameters of stage `cache-teacher`, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.config.base import require
from storage import HiddenName, Layout, LogitsName, PositionsName, Split


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Values that a preset's name stands for."""

    hidden: HiddenName
    logits: LogitsName
    top_k: int


PRESETS = {
    "lossless": Preset(hidden="float32", logits="float32", top_k=64),
    "exact": Preset(hidden="float16", logits="float16", top_k=64),
    "balanced": Preset(hidden="int8", logits="grid", top_k=32),
}
"""Named points on the ladder of size against error; figures in docs/performance.md. A field that is set beside `preset` wins."""


@dataclass(frozen=True, kw_only=True)
class CachedSequences:
    """How many sequences of each split the teacher sees: the first ones by id. null: all."""

    train: int | None = None
    validation: int | None = None
    test: int | None = None

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"cache.sequences.{name}", value, "null or 1 and more")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Stage `cache-teacher`: what is kept of the teacher, how it is coded, and how the teacher is run."""

    preset: Literal["lossless", "exact", "balanced"]
    positions: PositionsName
    temperatures: tuple[float, ...]
    """Softmax temperatures that top-k targets can be used at; 1 is always added."""
    shard_tokens: int
    """Tokens per shard, about: the unit of work, of resuming and of copying."""
    sequences: CachedSequences
    precision: Literal["float32", "bfloat16", "float16"]
    """Arithmetic of the teacher's forward pass."""
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    """Attention kernel of the teacher."""
    batch_tokens: int
    """Tokens per teacher batch. Not part of the cache's identity."""
    hidden: HiddenName | None = None
    """Coding of the last hidden state; null: the preset's."""
    logits: LogitsName | None = None
    """Coding of the top-k logits; null: the preset's."""
    top_k: int | None = None
    """Logits kept per position; null: the preset's."""

    def __post_init__(self) -> None:
        require(self.shard_tokens >= 1, "cache.shard_tokens", self.shard_tokens, "1 or more")
        require(self.batch_tokens >= 1, "cache.batch_tokens", self.batch_tokens, "1 or more")
        for temperature in self.temperatures:
            require(temperature > 0, "cache.temperatures", temperature, "numbers above 0")
        require(self.top_k is None or self.top_k >= 0, "cache.top_k", self.top_k, "null or 0 and more")
        kept, logits = self.train_top_k, self.train_logits
        require(
            (kept == 0) == (logits == "none"),
            "cache.top_k",
            kept,
            f"{'0' if logits == 'none' else '1 or more'}, as cache.logits is {logits}",
        )
        require(
            not (logits == "none" and self.train_hidden == "none"),
            "cache.hidden",
            "none",
            "a coding, as cache.logits is none: nothing would be kept",
        )

    @property
    def train_hidden(self) -> HiddenName:
        return self.hidden or PRESETS[self.preset].hidden

    @property
    def train_logits(self) -> LogitsName:
        return self.logits or PRESETS[self.preset].logits

    @property
    def train_top_k(self) -> int:
        if self.top_k is not None:
            return self.top_k
        return 0 if self.train_logits == "none" else PRESETS[self.preset].top_k

    @property
    def declared_temperatures(self) -> tuple[float, ...]:
        """Ascending, without repetition, 1 among them."""
        return tuple(sorted({1.0, *self.temperatures}))

    @property
    def head_dtype(self) -> Literal["float32", "float16"]:
        return "float32" if self.preset == "lossless" else "float16"

    def layout(self, split: Split, *, teacher_layers: int, vocabulary_size: int) -> Layout:
        """The arrays of a split. Validation and test are `exact` (or `lossless`) at all positions: they are the yardstick."""
        if split == "train":
            hidden, logits, top_k, positions = self.train_hidden, self.train_logits, self.train_top_k, self.positions
        else:
            yardstick = PRESETS["lossless" if self.preset == "lossless" else "exact"]
            hidden, logits = yardstick.hidden, yardstick.logits
            top_k, positions = min(yardstick.top_k, vocabulary_size), "all"
        return Layout(
            positions=positions,
            hidden=hidden,
            hidden_layers=(teacher_layers,) if hidden != "none" else (),
            logits=logits,
            top_k=top_k,
        )
