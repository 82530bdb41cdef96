"""Parameters of the stages `train-student` and `evaluate`, of `pipeline compare`, and of the machine."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from stages.config.base import joined, require, require_seed
from stages.config.layers import RelationsConfig, check_inner_losses
from stages.config.validation import ValidationConfig
from storage.layout import PARTS, PartName

Tracker = Literal["tensorboard", "wandb", "mlflow", "dvclive"]
"""Where a training can report to, by the name of its Python package."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """`kd T^2 KL + mlm CE + clm CE + cos (1 - cosine) + mse SE`, and losses inside; DistilBERT: 5, 2, 0, 1, 0."""

    kd: float
    """KL from the teacher's distribution to the student's, both at `temperature`."""
    mlm: float
    """Cross-entropy with the masked tokens: for caches of masked teachers."""
    clm: float = joined(0.0)
    """Cross-entropy with the next token: for caches of causal teachers."""
    cos: float
    """One minus the cosine between hidden states."""
    mse: float = joined(0.0)
    """Squared difference of the logits, summed over the vocabulary: for `kd_source: hidden`."""
    hidden: float = joined(0.0)
    """Mean squared difference of hidden states."""
    relations: float = joined(0.0)
    """MiniLMv2's: KL of self-attention relations. Needs `cache.attention_vectors`, as the next one does."""
    attention: float = joined(0.0)
    """TinyBERT's: mean squared difference of attention scores."""

    def __post_init__(self) -> None:
        for field in fields(self):
            weight = getattr(self, field.name)
            require(weight >= 0, f"train.weights.{field.name}", weight, "0 or more")
        require(bool(self.used), "train.weights", "all 0", "at least one weight above 0")

    @property
    def used(self) -> tuple[str, ...]:
        """The terms with a weight above 0."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) > 0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Stage `train-student`."""

    student: str
    """Name in the map `students`."""
    weights: LossWeights
    temperature: float
    """T of the distillation loss."""
    kd_source: Literal["hidden", "top_k", "draws"]
    """`hidden`: the teacher's full distribution, rebuilt from the cached hidden state by its frozen head. `top_k`: the cached
    logits, and `tail` for the rest of the vocabulary. `draws`: ids drawn from the full distribution, without bias."""
    batch_size: int
    """Sequences per optimizer step, over all processes and accumulated micro-batches."""
    micro_batch_size: int
    """Sequences per forward pass of one process."""
    learning_rate: float
    """The highest, after the warm-up."""
    weight_decay: float
    """Of matrices and embeddings; biases and the weights of norms have none."""
    adam_betas: tuple[float, ...]
    """AdamW's decay rates of the two moments."""
    adam_epsilon: float
    """AdamW's."""
    max_grad_norm: float
    """Gradients are scaled down to this norm."""
    precision: Literal["auto", "float32", "bfloat16", "float16"]
    """`auto`: bfloat16 autocast where the hardware has it, else float32. `float16`: with scaled gradients, on a GPU."""
    freeze_position_embeddings: bool
    """Keep the position table as it was initialised, as DistilBERT's published command does."""
    seed: int
    """Of the order of the batches, and of dropout."""
    checkpoint_steps: int
    """Steps from one checkpoint to the next."""
    log_steps: int
    """Steps from one line of `runs/train.csv` to the next, each the mean of those between."""
    steps: int | None = None
    """Optimizer steps; or set `epochs`."""
    epochs: int | None = None
    """Passes over the cached sequences; epoch e sees mask variant e mod `masking.variants`."""
    tail: Literal["rest", "renormalise", "draws"] = "rest"
    """What stands for the ids outside of `kd_source: top_k`. `rest`: one bucket on both sides. `draws`: ids drawn from
    the tail (`cache.draw_from: tail`), without bias. `renormalise`: nothing, for comparison; it pulls the student off."""
    kd_positions: Literal["all", "masked"] = joined("all")
    """Which of the cached positions the losses on logits (kd, mse) are means over."""
    cos_positions: Literal["all", "masked"] = joined("all")
    """The same for the cosine loss."""
    layer_map: tuple[tuple[int, ...], ...] | None = joined(None)
    """`[[student, teacher], ...]`: the layers that cos and hidden are means over, numbered as `cache.hidden_layers` are (0: the
    embeddings); null: last to last."""
    hidden_projection: bool = joined(False)
    """A linear map from the student's width to the teacher's, learned with the student and left behind, for cos and hidden."""
    relations: RelationsConfig | None = joined(None)  # noqa: RUF009  it is frozen
    """What `weights.relations` compares."""
    attention_map: tuple[tuple[int, ...], ...] | None = joined(None)
    """`[[student, teacher], ...]`: the blocks, counted from 1, that `weights.attention` is a mean over."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises from 0; or set `warmup_fraction`."""
    warmup_fraction: float | None = joined(None)
    """Those steps as a share of all, rounded up."""
    schedule: Literal["linear", "cosine", "constant"] = joined("linear")
    """Of the learning rate after the warm-up: down to 0 at the last step, or as it is."""
    freeze_token_type_embeddings: bool = joined(False)
    """Keep that table as it was initialised. Only for students that have one."""
    gradient_checkpointing: bool = joined(False)
    """Compute the inside of each block again in the backward pass and do not keep it: less memory, a third more time."""
    compile: bool = joined(False)
    """torch.compile for the student's encoder: minutes at the start, then faster on a GPU."""
    validation: ValidationConfig = joined(ValidationConfig())  # noqa: RUF009  it is frozen
    ensemble: dict[str, float] | None = joined(None)  # noqa: RUF009  None
    """The share of each teacher that the student learns from: `teacher`, the main one, and names in `teachers`; null: the main one
    alone. They sum to 1, so that the scale of the losses is that of `weights`."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "micro_batch_size", "checkpoint_steps", "log_steps"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "1 or more")
        require(
            (self.steps is None) != (self.epochs is None),
            "train.steps",
            self.steps,
            "an integer where train.epochs is null, else null",
        )
        require(self.steps is None or self.steps >= 1, "train.steps", self.steps, "1 or more")
        require(self.epochs is None or self.epochs >= 1, "train.epochs", self.epochs, "1 or more")
        require(self.temperature > 0, "train.temperature", self.temperature, "more than 0")
        require(self.learning_rate > 0, "train.learning_rate", self.learning_rate, "more than 0")
        self._check_warmup()
        require(self.weight_decay >= 0, "train.weight_decay", self.weight_decay, "0 or more")
        require(
            len(self.adam_betas) == 2 and all(0 <= beta < 1 for beta in self.adam_betas),
            "train.adam_betas",
            list(self.adam_betas),
            "two numbers, each 0 <= x < 1",
        )
        require(self.adam_epsilon > 0, "train.adam_epsilon", self.adam_epsilon, "more than 0")
        require(self.max_grad_norm > 0, "train.max_grad_norm", self.max_grad_norm, "more than 0")
        require_seed("train.seed", self.seed)
        require(
            self.tail == "rest" or self.kd_source == "top_k",
            "train.tail",
            self.tail,
            f"rest, as train.kd_source is {self.kd_source}",
        )
        require(
            self.batch_size % self.micro_batch_size == 0,
            "train.micro_batch_size",
            self.micro_batch_size,
            f"a divisor of train.batch_size ({self.batch_size})",
        )
        check_inner_losses(self)
        self._check_shares()

    def _check_shares(self) -> None:
        shares = self.ensemble or {}
        for name, share in shares.items():
            require(0 <= share <= 1, f"train.ensemble.{name}", share, "0 <= x <= 1")
        total = sum(shares.values())
        require(
            not shares or math.isclose(total, 1, abs_tol=1e-6),
            "train.ensemble",
            dict(shares),
            f"shares that sum to 1 (these to {total:g}): how much the teachers count together is what train.weights say",
        )

    def _check_warmup(self) -> None:
        require(
            (self.warmup_steps is None) != (self.warmup_fraction is None),
            "train.warmup_steps",
            self.warmup_steps,
            "an integer where train.warmup_fraction is null, else null",
        )
        require(
            self.warmup_steps is None or self.warmup_steps >= 0, "train.warmup_steps", self.warmup_steps, "0 or more"
        )
        require(
            self.warmup_fraction is None or 0 <= self.warmup_fraction < 1,
            "train.warmup_fraction",
            self.warmup_fraction,
            "null or 0 <= x < 1",
        )

    def warmup(self, steps: int) -> int:
        """The steps of the warm-up of a training of so many steps."""
        return math.ceil(steps * self.warmup_fraction) if self.warmup_fraction else self.warmup_steps or 0

    @property
    def distils(self) -> bool:
        """Whether anything is learned from the teacher."""
        return not {"mlm", "clm"}.issuperset(self.weights.used)

    @property
    def reads_draws(self) -> bool:
        """Whether the KD loss reads the cached draws."""
        return self.weights.kd > 0 and "draws" in (self.kd_source, self.tail)

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether a loss reads the teacher's logits at every id, which its frozen head makes of the cached hidden state."""
        return self.kd_source == "hidden" and (self.weights.kd > 0 or self.weights.mse > 0)

    @property
    def reads_states(self) -> bool:
        """Whether a loss compares hidden states."""
        return self.weights.cos > 0 or self.weights.hidden > 0

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """The teacher's layers that hidden states are compared with, by number; none where that is the last one, unnamed."""
        return tuple(sorted({theirs for _, theirs in self.layer_map or ()})) if self.reads_states else ()

    @property
    def reads_last_hidden(self) -> bool:
        """Whether a loss reads the teacher's last hidden state without naming its number."""
        return self.reads_teacher_logits or (self.reads_states and self.layer_map is None)

    @property
    def attention_parts(self) -> tuple[PartName, ...]:
        """The vectors of self-attention that losses read."""
        read: set[PartName] = set()
        if self.weights.relations > 0 and self.relations is not None:
            read.update(self.relations.compared)
        if self.weights.attention > 0:
            read.update(("queries", "keys"))
        return tuple(part for part in PARTS if part in read)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Stage `evaluate`."""

    split: Literal["validation", "test"]
    """Which the figures are of."""
    batch_size: int
    """Sequences per forward pass."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "evaluate.batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """`pipeline compare`: students trained from the same cache, side by side."""

    seeds: tuple[int, ...]
    """Each run is done once per seed, which takes the place of `train.seed` and, for random initial weights, of the student's."""
    runs: dict[str, dict[str, Any]]
    """Name, and what differs from `train` in this run: nested keys as there."""
    against: str | None = joined(None)
    """The run that the differences of the others are from; null: the table has none."""

    def __post_init__(self) -> None:
        require(
            len(self.seeds) >= 1 and len(set(self.seeds)) == len(self.seeds),
            "compare.seeds",
            list(self.seeds),
            "one or more, each once",
        )
        for seed in self.seeds:
            require_seed("compare.seeds", seed)
        require(bool(self.runs), "compare.runs", {}, "at least one run")
        for name, changes in self.runs.items():
            require(
                "seed" not in changes, f"compare.runs.{name}.seed", changes.get("seed"), "nothing: set compare.seeds"
            )
        require(
            self.against is None or self.against in self.runs,
            "compare.against",
            self.against,
            f"null or one of compare.runs: {', '.join(self.runs)}",
        )


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """What this machine has. Never part of an identity."""

    device: str
    """`auto` (a GPU if there is one), or a torch device."""
    threads: int | None = None
    """Threads for tensor work; null: torch's choice, one per physical core, or OMP_NUM_THREADS where that is set."""
    workers: int | None = None
    """Processes on this machine that share the work of `corpus`, `tokenize` and `cache-teacher`; null: the command's own."""
    shard_memory_gb: float = 4.0
    """GiB of decoded shards that a training holds in memory on each node, read ahead ones included."""
    local_shards_gb: float = 16.0
    """GiB of shards of a cache at a remote root that may lie on this disk."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """Spread a teacher that is too large for one device over all of them, by accelerate; null: `device` alone."""
    max_memory: dict[str, str] | None = None
    """For `device_map`: what the teacher may take of each device, as in `{"0": 20GiB, cpu: 60GiB}`; null: what is free."""
    report_to: tuple[Tracker, ...] = joined(())
    """Where a training reports to, beside `runs/train.csv`. Nothing leaves this machine by default."""
    fsdp: bool = False
    """Spread the student and its optimizer's state over the processes of `train-student`, for one that a GPU does not hold."""

    def __post_init__(self) -> None:
        require(self.threads is None or self.threads >= 1, "machine.threads", self.threads, "null or 1 and more")
        require(self.workers is None or self.workers >= 1, "machine.workers", self.workers, "null or 1 and more")
        require(self.shard_memory_gb > 0, "machine.shard_memory_gb", self.shard_memory_gb, "more than 0")
        require(self.local_shards_gb > 0, "machine.local_shards_gb", self.local_shards_gb, "more than 0")
        require(
            self.max_memory is None or self.device_map is not None,
            "machine.max_memory",
            self.max_memory,
            "null, as machine.device_map is null",
        )
        for device, size in (self.max_memory or {}).items():
            key = f"machine.max_memory.{device}"
            require(bool(re.fullmatch(r"\d+|cpu", device)), key, size, "devices by number (0, 1) and cpu")
            require(bool(re.fullmatch(r"\d+(\.\d+)?[KMG]i?B", size)), key, size, "a size with its unit, as in 20GiB")
