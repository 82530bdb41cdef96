"""Parameters of stage `cache-teacher`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from stages.config.base import joined, require
from stages.config.presets import PRESETS
from storage import HiddenName, Layout, LogitsName, PositionsName, Split
from storage.layout import COUNT_MAX, PARTS, DrawFromName, PartName, SelectionName

RUNGS = (
    "position_fraction",
    "hidden_layers",
    "hidden_group",
    "grid_step",
    "selection",
    "threshold",
    "threshold_temperature",
    "draws",
    "draw_from",
    "draw_temperature",
    "attention_vectors",
    "attention_layers",
    "attention_coding",
)
"""Keys that may all be null, for what `storage.Layout` takes them to be; `cache_spec` names only those that differ from that."""


@dataclass(frozen=True, kw_only=True)
class CachedSequences:
    """How many sequences of each split the teacher sees: the first ones by id. null: all."""

    train: int | None = None
    """Of the train split."""
    validation: int | None = None
    """Of the validation split."""
    test: int | None = None
    """Of the test split."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"cache.sequences.{name}", value, "null or 1 and more")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Stage `cache-teacher`: what is kept of the teacher, how it is coded, and how the teacher is run."""

    preset: Literal["lossless", "exact", "balanced", "small"]
    """What is kept and how it is coded, where the keys below do not say otherwise; validation and test are `exact`, or `lossless`."""
    positions: PositionsName
    """Which tokens of the train split have a row: every one, the masked ones, or those and a share of the others."""
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
    targets: Literal["language_model", "task"] = joined("language_model")
    """Of which teacher `pipeline cache-teacher` makes caches where no --task is named: of the language model, or of those that
    were fine-tuned on the tasks of `finetune`. Not part of an identity: each cache has a place of its own."""
    compile: bool = joined(False)
    """Run the teacher through torch.compile; not part of the identity either."""
    hidden: HiddenName | None = None
    """Coding of the hidden states; null: the preset's."""
    logits: LogitsName | None = None
    """Coding of the cached logits; null: the preset's."""
    top_k: int | None = None
    """Logits kept per position, or the most that a threshold keeps; null: the preset's."""
    position_fraction: float | None = None
    """For `positions: sampled`: the share of the tokens that are not masked that has a row, weighted by its inverse."""
    hidden_layers: tuple[int, ...] | None = None
    """0 is the embeddings' output, n the output of the n-th block; null: the last one."""
    hidden_group: int | Literal["row"] | None = None
    """Values per int8 scale; null: 64."""
    grid_step: float | None = None
    """Nats per step of the logit grid; null: 1/8."""
    selection: SelectionName | None = None
    """`top_k`, or `threshold`: every id with a probability of `threshold` or more at `threshold_temperature`, at most
    `top_k` of them; null: `top_k`."""
    threshold: float | None = None
    """A probability, for `selection: threshold`."""
    threshold_temperature: float | None = None
    """null: 1."""
    draws: int | None = None
    """Ids drawn per position, with replacement; null: the preset's."""
    draw_from: DrawFromName | None = None
    """`all`: the full distribution. `tail`: what the cached logits leave out. null: `all`."""
    draw_temperature: float | None = None
    """Of the distribution that is drawn from: the draws serve that training temperature only. null: the preset's, else 1."""
    attention_vectors: tuple[PartName, ...] | None = joined(None)
    """What of `queries`, `keys` and `values` is kept of the blocks `attention_layers`; null: nothing."""
    attention_layers: tuple[int, ...] | None = joined(None)
    """Blocks, counted from 1; null: the last one."""
    attention_coding: Literal["float32", "float16", "bfloat16", "int8"] | None = joined(None)
    """null: int8, in groups of `hidden_group`."""

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
            not (
                logits == "none"
                and self.train_hidden == "none"
                and self.train_draws == 0
                and not self.attention_vectors
            ),
            "cache.hidden",
            "none",
            "a coding, as cache.logits is none and there are neither draws nor vectors of attention: nothing would be kept",
        )
        self._check_positions()
        self._check_attention()
        self._check_codings()
        self._check_selection()
        self._check_draws()

    def _check_positions(self) -> None:
        fraction = self.position_fraction
        if self.positions == "sampled":
            fine, allowed = fraction is not None and 0 < fraction < 1, "0 < x < 1"
        else:
            fine, allowed = fraction is None, "null"
        require(fine, "cache.position_fraction", fraction, f"{allowed}, as cache.positions is {self.positions}")

    def _check_attention(self) -> None:
        vectors, layers = self.attention_vectors, self.attention_layers
        if vectors is None:
            for name in ("attention_layers", "attention_coding"):
                self._require_null_unless(False, name, "cache.attention_vectors is null")
            return
        require(
            len(vectors) > 0 and list(vectors) == [part for part in PARTS if part in vectors],
            "cache.attention_vectors",
            list(vectors),
            f"null or some of {', '.join(PARTS)}, in this order, each once",
        )
        reason = "as cache.attention_vectors are cached"
        require(
            self.positions == "all",
            "cache.positions",
            self.positions,
            f"all, {reason}: what is learned from them relates all tokens of a sequence",
        )
        require(not self.compile, "cache.compile", True, f"false, {reason}: they are taken out of the teacher's blocks")
        require(
            layers is None or (len(layers) > 0 and layers[0] >= 1 and list(layers) == sorted(set(layers))),
            "cache.attention_layers",
            None if layers is None else list(layers),
            "null or numbers of blocks from 1, ascending, each once",
        )

    def check_hidden_layers(self, teacher_layers: int) -> None:
        """Refuse layers that the teacher does not have. Raises `ConfigError`."""
        self._check_last("hidden_layers", 0, teacher_layers)

    def check_attention_layers(self, teacher_layers: int) -> None:
        """Refuse blocks that the teacher does not have. Raises `ConfigError`."""
        self._check_last("attention_layers", 1, teacher_layers)

    def _check_last(self, name: str, first: int, teacher_layers: int) -> None:
        layers = getattr(self, name)
        require(
            layers is None or layers[-1] <= teacher_layers,
            f"cache.{name}",
            None if layers is None else list(layers),
            f"{first} to {teacher_layers}, as the teacher has {teacher_layers} blocks",
        )

    def _check_codings(self) -> None:
        layers, group, step = self.hidden_layers, self.hidden_group, self.grid_step
        in_groups = "int8" in (self.train_hidden, self.attention_vectors and self.rungs["attention_coding"])
        self._require_null_unless(in_groups, "hidden_group", f"cache.hidden is {self.train_hidden}")
        require(
            not isinstance(group, int) or group >= 1, "cache.hidden_group", group, "null, row, or an integer above 0"
        )
        self._require_null_unless(self.train_hidden != "none", "hidden_layers", "cache.hidden is none")
        require(
            layers is None or (len(layers) > 0 and layers[0] >= 0 and list(layers) == sorted(set(layers))),
            "cache.hidden_layers",
            None if layers is None else list(layers),
            "null or layer numbers from 0, ascending, each once",
        )
        self._require_null_unless(self.train_logits == "grid", "grid_step", f"cache.logits is {self.train_logits}")
        require(step is None or step > 0, "cache.grid_step", step, "null or more than 0")

    def _check_selection(self) -> None:
        if self.selection != "threshold":
            for name in ("threshold", "threshold_temperature"):
                self._require_null_unless(False, name, "cache.selection is not threshold")
            return
        reason = "as cache.selection is threshold"
        require(1 <= self.train_top_k <= COUNT_MAX, "cache.top_k", self.train_top_k, f"1 to {COUNT_MAX}, {reason}")
        threshold = self.threshold
        require(threshold is not None and 0 < threshold < 1, "cache.threshold", threshold, f"0 < x < 1, {reason}")
        self._require_declared("threshold_temperature")

    def _check_draws(self) -> None:
        require(0 <= self.train_draws <= COUNT_MAX, "cache.draws", self.train_draws, f"0 to {COUNT_MAX}")
        for name in ("draw_from", "draw_temperature"):
            self._require_null_unless(self.train_draws > 0, name, "cache.draws is 0")
        require(
            self.draw_from != "tail" or self.train_logits != "none",
            "cache.draw_from",
            "tail",
            "all, as cache.logits is none: no ids are cached that a tail would lie outside of",
        )
        self._require_declared("draw_temperature")

    def _require_null_unless(self, condition: bool, name: str, reason: str) -> None:
        value = getattr(self, name)
        require(condition or value is None, f"cache.{name}", value, f"null, as {reason}")

    def _require_declared(self, name: str) -> None:
        temperature, declared = self.rungs[name], self.declared_temperatures
        allowed = f"one of cache.temperatures ({', '.join(map(str, declared))})"
        require(temperature in declared, f"cache.{name}", temperature, allowed)

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
    def train_draws(self) -> int:
        return PRESETS[self.preset].draws if self.draws is None else self.draws

    @property
    def rungs(self) -> dict[str, Any]:
        """What each key of `RUNGS` comes to for the train split: as set, else the preset's, else the format's default."""
        default = {field.name: field.default for field in fields(Layout)}
        default.update(hidden_layers=None, attention_layers=None)  # the last one, whichever it is
        if self.train_draws:
            default.update(draws=self.train_draws, draw_temperature=PRESETS[self.preset].draw_temperature)
        given = {name: getattr(self, name) for name in RUNGS}
        return {name: default[name] if value is None else value for name, value in given.items()}

    @property
    def declared_temperatures(self) -> tuple[float, ...]:
        """Ascending, without repetition, 1 among them."""
        return tuple(sorted({1.0, *self.temperatures}))

    @property
    def head_dtype(self) -> Literal["float32", "float16"]:
        return "float32" if self.preset == "lossless" else "float16"

    def layout(
        self,
        split: Split,
        *,
        teacher_layers: int,
        hidden_size: int,
        vocabulary_size: int,
        attention_widths: tuple[int, ...] = (),
    ) -> Layout:
        """The arrays of a split. Validation and test are `exact` (or `lossless`) at all positions: they are the yardstick.

        `attention_widths` are those of `attention_vectors`.
        """
        if split != "train":
            yardstick = PRESETS["lossless" if self.preset == "lossless" else "exact"]
            return Layout(
                positions="all",
                hidden=yardstick.hidden,
                hidden_layers=(teacher_layers,),
                logits=yardstick.logits,
                top_k=min(yardstick.top_k, vocabulary_size),
            )
        rungs, hidden = self.rungs, self.train_hidden
        layers = rungs["hidden_layers"] or (teacher_layers,)
        return Layout(
            positions=self.positions,
            hidden=hidden,
            logits=self.train_logits,
            top_k=self.train_top_k,
            **{
                **rungs,
                "hidden_layers": layers if hidden != "none" else (),
                "hidden_group": hidden_size if rungs["hidden_group"] == "row" else rungs["hidden_group"],
                "attention_layers": self.attention_blocks(teacher_layers),
            },
            attention_widths=attention_widths,
        )

    def attention_blocks(self, teacher_layers: int) -> tuple[int, ...]:
        """The blocks whose vectors are cached, counted from 1."""
        return () if self.attention_vectors is None else self.attention_layers or (teacher_layers,)
