"""Parameters of the teacher and of the students."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stages.config.base import joined, require, require_seed, require_settings
from stages.config.corpus import SourceConfig


@dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """How a teacher is trained by masked language modelling, whatever its weights at the start."""

    KEY: ClassVar[str]
    """Where these settings stand in params.yaml, for messages; those of a further teacher: `build`."""

    learning_rate: float
    """The highest, after the warm-up."""
    warmup_steps: int
    """Steps in which it rises from 0."""
    steps: int
    """Optimizer steps where `precision` comes out as bfloat16."""
    float32_steps: int
    """Optimizer steps where it comes out as float32, which takes about twice as long per step on a CPU."""
    batch_size: int
    """Sequences per optimizer step."""
    weight_decay: float
    """AdamW's."""
    precision: Literal["auto", "float32", "bfloat16"]
    """`auto` is bfloat16 autocast where the processor or GPU has bfloat16 arithmetic, else float32; recorded, never timed."""
    seed: int
    """Of the first weights, the order of the batches, and dropout."""

    def __post_init__(self) -> None:
        for name in ("steps", "float32_steps", "batch_size"):
            require(getattr(self, name) >= 1, f"{self.KEY}.{name}", getattr(self, name), "1 or more")
        require(self.learning_rate > 0, f"{self.KEY}.learning_rate", self.learning_rate, "more than 0")
        require(self.warmup_steps >= 0, f"{self.KEY}.warmup_steps", self.warmup_steps, "0 or more")
        require(self.weight_decay >= 0, f"{self.KEY}.weight_decay", self.weight_decay, "0 or more")
        require_seed(f"{self.KEY}.seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class AdaptTeacherConfig(TeacherTraining):
    """A pretrained encoder with a new LM head, trained on the corpus."""

    KEY: ClassVar[str] = "teacher.adapt"

    dropout: float | None = None
    """Of the training; null: the encoder's own. 0 saves a third of the time on a CPU, whose random numbers come one by one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.dropout is None or 0 <= self.dropout < 1, "teacher.adapt.dropout", self.dropout, "null or 0 <= x < 1"
        )


@dataclass(frozen=True, kw_only=True)
class TrainTeacherConfig(TeacherTraining):
    """A small BERT trained on the spot."""

    KEY: ClassVar[str] = "teacher.train"

    layers: int
    """Blocks."""
    hidden_size: int
    """Width of the hidden states."""
    attention_heads: int
    """Per block."""
    feed_forward_size: int
    """Width of the feed-forward layers."""
    max_positions: int
    """Longest sequence that it can read."""
    dropout: float
    """Of the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "hidden_size", "attention_heads", "feed_forward_size", "max_positions"):
            require(getattr(self, name) >= 1, f"teacher.train.{name}", getattr(self, name), "1 or more")
        require(
            self.hidden_size % self.attention_heads == 0,
            "teacher.train.hidden_size",
            self.hidden_size,
            f"a multiple of teacher.train.attention_heads ({self.attention_heads})",
        )
        require(0 <= self.dropout < 1, "teacher.train.dropout", self.dropout, "0 <= x < 1")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Stage `teacher`: a model to load, one to train, or an encoder to load and adapt."""

    KEY: ClassVar[str] = "teacher"

    source: Literal["train", "load", "adapt"]
    """`train`: a small one, here. `load`: one that exists. `adapt`: a pretrained encoder, given an LM head and trained here."""
    train: TrainTeacherConfig | None = None
    load: SourceConfig | None = None
    adapt: AdaptTeacherConfig | None = None
    objective: Literal["masked", "causal"] = joined("masked")
    """What it was trained for. `masked`: words from both sides, as BERT. `causal`: the next token, as GPT; nothing is masked."""

    def __post_init__(self) -> None:
        require(
            self.objective == "masked" or self.source == "load",
            "teacher.source",
            self.source,
            "load, as teacher.objective is causal: only masked teachers are trained here",
        )
        require_settings(self, "teacher", "source", *self.used)

    @property
    def used(self) -> tuple[str, ...]:
        """The settings that count: `adapt` trains what `load` names."""
        return ("load", "adapt") if self.source == "adapt" else (self.source,)

    @property
    def training(self) -> TeacherTraining | None:
        """How it is trained; None for a model that is taken as it is."""
        return {"train": self.train, "load": None, "adapt": self.adapt}[self.source]


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Stage `init-student`: one entry of the map `students`."""

    KEY: ClassVar[str] = "students.*"

    architecture: Literal["distilbert", "same", "bilstm"]
    """`distilbert`: of a BERT. `same`: the teacher's own class, with fewer blocks. `bilstm`: two LSTMs per block."""
    initialise: Literal["teacher", "random"]
    """Its first weights: copied from the teacher, or random."""
    layers: int
    """Blocks."""
    dropout: float
    """Of its training, in attention too."""
    seed: int
    """Of the random initialisation."""
    layer_map: tuple[int, ...] | None = None
    """Teacher block copied into each student block, counted from 0; null spreads them as DistilBERT did (12 -> 6: 0 2 4 7 9 11)."""
    hidden_size: int | None = None
    """null: as the teacher. Another size needs `initialise: random`, and for losses on hidden states `train.hidden_projection`."""
    attention_heads: int | None = None
    """null: as the teacher."""
    feed_forward_size: int | None = None
    """null: as the teacher."""
    lstm_size: int | None = joined(None)
    """State of one direction of a bilstm; null: half its hidden size."""

    def __post_init__(self) -> None:
        require(self.layers >= 1, "students.*.layers", self.layers, "1 or more")
        require(0 <= self.dropout < 1, "students.*.dropout", self.dropout, "0 <= x < 1")
        require_seed("students.*.seed", self.seed)
        if self.layer_map is not None:
            require(
                self.initialise == "teacher", "students.*.layer_map", self.layer_map, "null, as initialise is random"
            )
            require(
                len(self.layer_map) == self.layers and min(self.layer_map, default=0) >= 0,
                "students.*.layer_map",
                list(self.layer_map),
                f"{self.layers} teacher blocks (students.*.layers), counted from 0",
            )
        for name in ("hidden_size", "attention_heads", "feed_forward_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"students.*.{name}", value, "null or 1 and more")
            require(
                value is None or self.initialise == "random",
                f"students.*.{name}",
                value,
                "null, as initialise is teacher",
            )
        self._check_lstm()

    def _check_lstm(self) -> None:
        """A BiLSTM has neither attention nor a feed-forward layer, and no block of a teacher's; only it has an LSTM."""
        is_lstm = self.architecture == "bilstm"
        require(
            self.lstm_size is None or self.lstm_size >= 1, "students.*.lstm_size", self.lstm_size, "null or 1 and more"
        )
        foreign = ("layer_map", "attention_heads", "feed_forward_size") if is_lstm else ("lstm_size",)
        for name in foreign:
            value = getattr(self, name)
            require(value is None, f"students.*.{name}", value, f"null, as architecture is {self.architecture}")

    @property
    def is_transformer(self) -> bool:
        """Whether it has blocks with self-attention, which a teacher's can be copied into and compared with."""
        return self.architecture != "bilstm"
