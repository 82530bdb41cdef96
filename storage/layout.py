"""Names and shapes of format version 1 (FORMAT.md): splits, shards, and which arrays a split holds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from storage.errors import CorruptError

FORMAT_VERSION = 1

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PositionsName = Literal["all", "masked"]
HiddenName = Literal["float32", "float16", "int8", "none"]
LogitsName = Literal["float32", "float16", "grid", "none"]

_SHARD_NAME = re.compile(r"(train|validation|test)-v(\d+)-(\d{6})")


@dataclass(frozen=True, order=True)
class ShardId:
    """One shard: split, mask variant and number. `str()` is its name on disk."""

    split: Split
    variant: int
    number: int

    def __str__(self) -> str:
        return f"{self.split}-v{self.variant}-{self.number:06d}"

    @classmethod
    def parse(cls, name: str) -> ShardId:
        """The id of a name such as `train-v0-000123`. Raises `CorruptError` for anything else."""
        match = _SHARD_NAME.fullmatch(name)
        if match is None:
            raise CorruptError(f"{name!r} is no shard name; expected the form train-v0-000123")
        return cls(split=match[1], variant=int(match[2]), number=int(match[3]))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which arrays the shards of a split hold, and how they are coded (FORMAT.md, section 4)."""

    positions: PositionsName
    hidden: HiddenName
    hidden_layers: tuple[int, ...]
    """0 is the embeddings' output, n the output of the n-th block."""
    logits: LogitsName
    top_k: int
    hidden_group: int = 64
    grid_step: float = 0.125

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal layout back."""
        return {**asdict(self), "hidden_layers": list(self.hidden_layers)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Layout:
        """The layout that `to_json` wrote."""
        return cls(**{**value, "hidden_layers": tuple(value["hidden_layers"])})

    @property
    def required_features(self) -> tuple[str, ...]:
        """Names, as in FORMAT.md section 7, that a reader must know to read this layout."""
        features = {
            "int8-groups": self.hidden == "int8",
            "logit-grid": self.logits == "grid",
            "row-token": self.positions != "all",
        }
        return tuple(sorted(name for name, needed in features.items() if needed))
