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
PartName = Literal["queries", "keys", "values"]
PARTS: tuple[PartName, ...] = get_args(PartName)
AttentionCodingName = Literal["float32", "float16", "bfloat16", "int8"]
TaskName = Literal["none", "classification", "answers"]
VectorName = Literal["hidden", "queries", "keys", "values"]
"""What is cached as one vector per row and layer, by the names of the arrays."""

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
    attention_vectors: tuple[PartName, ...] = ()
    """Outputs of the projections of self-attention, in the order of `PARTS`."""
    attention_widths: tuple[int, ...] = ()
    """W of each of them: all heads side by side."""
    attention_layers: tuple[int, ...] = ()
    """Blocks whose they are, counted from 1 as in `hidden_layers`."""
    attention_coding: AttentionCodingName = "int8"
    task: TaskName = "none"
    """What head a teacher has that was fine-tuned on a downstream task; `none`: it is a language model."""
    task_width: int = 0
    """Classes, 1 for a score, 2 for answers: their first and last token."""
    token_types: bool = False

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
        self._check_attention()
        self._check_task()

    def _check_task(self) -> None:
        if self.task == "none":
            self._require("task_width", self.task_width == 0, "0, as there is no task")
            self._require("token_types", not self.token_types, "false, as there is no task")
            return
        self._require("positions", self.positions == "all", "all, as there is a task")
        self._require("logits", self.logits == "none", "none, as there is a task")
        self._require("draws", self.draws == 0, "0, as there is a task")
        fine = self.task_width == 2 if self.task == "answers" else self.task_width >= 1
        self._require("task_width", fine, "2 for answers" if self.task == "answers" else "1 or more")

    def _check_attention(self) -> None:
        vectors, widths, layers = self.attention_vectors, self.attention_widths, self.attention_layers
        in_order = tuple(part for part in PARTS if part in vectors)
        self._require("attention_vectors", vectors == in_order, f"some of {', '.join(PARTS)}, in this order")
        if not vectors:
            for name in ("attention_widths", "attention_layers"):
                self._require(name, not getattr(self, name), "(), as there are no attention_vectors")
            self._require(
                "attention_coding", self.attention_coding == "int8", "int8, as there are no attention_vectors"
            )
            return
        self._require("positions", self.positions == "all", "all, as there are attention_vectors")
        one_each = len(widths) == len(vectors) and min(widths) >= 1
        self._require("attention_widths", one_each, f"{len(vectors)} widths, one for each of attention_vectors")
        fine = len(layers) > 0 and layers[0] >= 1 and list(layers) == sorted(set(layers))
        self._require("attention_layers", fine, "numbers of blocks from 1, ascending, each once")

    def _require(self, name: str, fine: bool, expected: str) -> None:
        if not fine:
            raise ValueError(f"{name} of a layout is {getattr(self, name)!r}; expected {expected}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; `from_json` gives an equal layout back.

        Keys that joined the format later are left out where they have their default, so that the bytes of a cache
        that does not use them do not depend on the writer's age.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if _LATER.get(name, _ALWAYS) != value
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Layout:
        """The layout that `to_json` wrote."""
        plain: dict[str, Any] = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
        return cls(**plain)

    def vectors(self, hidden_size: int) -> dict[VectorName, int]:
        """What is cached as vectors, in the order of the arrays, with the width of each."""
        hidden: dict[VectorName, int] = {} if self.hidden == "none" else {"hidden": hidden_size}
        return {**hidden, **dict(zip(self.attention_vectors, self.attention_widths, strict=True))}

    def coding(self, name: VectorName) -> HiddenName:
        """How these vectors are coded; `none` where they are not cached."""
        if name == "hidden":
            return self.hidden
        return self.attention_coding if name in self.attention_vectors else "none"

    def layers(self, name: VectorName) -> tuple[int, ...]:
        """The layers whose vectors are cached, in the order of the array's second axis; none where they are not."""
        if name == "hidden":
            return self.hidden_layers
        return self.attention_layers if name in self.attention_vectors else ()

    @property
    def required_features(self) -> tuple[str, ...]:
        """Names, as in FORMAT.md section 7, that a reader must know to read this layout."""
        codings = {self.hidden, *(self.coding(part) for part in self.attention_vectors)}
        features = {
            "int8-groups": "int8" in codings,
            "logit-grid": self.logits == "grid",
            "row-token": self.positions != "all",
            "row-sample": self.positions == "sampled",
            "bfloat16-bits": "bfloat16" in codings,
            "threshold": self.selection == "threshold",
            "draws": self.draws > 0,
            "attention-vectors": bool(self.attention_vectors),
            "task": self.task != "none",
        }
        return tuple(sorted(name for name, needed in features.items() if needed))


_CHOICES = {
    "positions": get_args(PositionsName),
    "hidden": get_args(HiddenName),
    "logits": get_args(LogitsName),
    "selection": get_args(SelectionName),
    "draw_from": get_args(DrawFromName),
    "attention_coding": get_args(AttentionCodingName),
    "task": get_args(TaskName),
}
_ALWAYS = object()  # unequal to every value: the first writers wrote all their keys
_LATER = {
    field.name: field.default
    for field in fields(Layout)
    if field.default is not MISSING and field.name not in ("hidden_group", "grid_step")
}
