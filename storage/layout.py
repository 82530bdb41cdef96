"""Names and shapes of format version 1 (FORMAT.md): splits, shards, and which arrays a split holds."""

from __future__ import annotations

import re
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, get_args

from storage.errors import CorruptError

FORMAT_VERSION = 1

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PositionsName = Literal["all", "masked", "sampled"]
HiddenName = Literal["float32", "float16", "bfloat16", "int8", "none"]
LogitsName = Literal["float32", "float16", "grid", "none"]
SelectionName = Literal["top_k", "threshold"]
DrawFromName = Literal["all", "tail"]

COUNT_MAX = 255
"""Most entries of a ragged row, and most draws: `top_count`, `draw_count` and `draw_weight` are bytes."""

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
    """Ids per row, or the most a row may have (`threshold`)."""
    hidden_group: int = 64
    """Values per int8 scale; the hidden size gives one scale per row."""
    grid_step: float = 0.125
    # Added later; new fields go to the end, and `to_json` leaves them out where they have their default.
    position_fraction: float = 1.0
    """Share of the tokens that are not masked, for `sampled`."""
    selection: SelectionName = "top_k"
    threshold: float = 0.0
    """Smallest probability at `threshold_temperature` that is cached, for `threshold`."""
    threshold_temperature: float = 1.0
    draws: int = 0
    """Per row, with replacement."""
    draw_from: DrawFromName = "all"
    draw_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        if self.positions == "sampled":
            self._require("position_fraction", 0 < self.position_fraction < 1, "more than 0, less than 1")
        else:
            self._require("position_fraction", self.position_fraction == 1, "1, as positions are not sampled")
        self._require("hidden_group", self.hidden_group >= 1, "1 or more")
        if self.logits == "none":
            self._require("selection", self.selection == "top_k", "top_k, as logits is none")
            self._require("top_k", self.top_k == 0, "0, as logits is none")
        else:
            self._require("top_k", self.top_k >= 1, "1 or more, as logits are cached")
        if self.selection == "threshold":
            self._require("top_k", self.top_k <= COUNT_MAX, f"at most {COUNT_MAX}, with a threshold")
            self._require("threshold", 0 < self.threshold <= 1, "more than 0, at most 1")
        else:
            self._require("threshold", self.threshold == 0, "0, as selection is top_k")
            self._require("threshold_temperature", self.threshold_temperature == 1, "1, as selection is top_k")
        self._require("draws", 0 <= self.draws <= COUNT_MAX, f"0 to {COUNT_MAX}")
        if self.draws == 0:
            self._require("draw_from", self.draw_from == "all", "all, as there are no draws")
            self._require("draw_temperature", self.draw_temperature == 1, "1, as there are no draws")
        elif self.logits == "none":
            self._require("draw_from", self.draw_from == "all", "all, as no ids are cached beside the draws")

    def _require(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"{name} of a layout is {getattr(self, name)!r}; expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal layout back.

        Keys that joined the format later are left out where they have their default, so that the bytes of a cache
        that does not use them do not depend on the writer's age.
        """
        return {
            **{name: value for name, value in asdict(self).items() if _LATER.get(name, _ALWAYS) != value},
            "hidden_layers": list(self.hidden_layers),
        }

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
            "row-sample": self.positions == "sampled",
            "bfloat16-bits": self.hidden == "bfloat16",
            "threshold": self.selection == "threshold",
            "draws": self.draws > 0,
        }
        return tuple(sorted(name for name, needed in features.items() if needed))


_CHOICES = {
    "positions": get_args(PositionsName),
    "hidden": get_args(HiddenName),
    "logits": get_args(LogitsName),
    "selection": get_args(SelectionName),
    "draw_from": get_args(DrawFromName),
}
_ALWAYS = object()  # unequal to every value: the first writers wrote all their keys
_LATER = {
    field.name: field.default
    for field in fields(Layout)
    if field.default is not MISSING and field.name not in ("hidden_group", "grid_step")
}
