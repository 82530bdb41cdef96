"""Parameters of `pipeline finetune`: which downstream tasks, from which data, trained how."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from stages.config.base import build, joined, merged, require, require_seed, suggest, to_plain
from stages.errors import ConfigError

TaskKind = Literal["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "IMDb", "SQuAD"]
"""The nine tasks of GLUE, IMDb and SQuAD v1.1."""

T = TypeVar("T")

TASK_KINDS: tuple[TaskKind, ...] = get_args(TaskKind)


@dataclass(frozen=True, kw_only=True)
class TaskDatasetConfig:
    """A dataset of the Hugging Face hub that holds one or several tasks."""

    name: str
    """Its id on the hub."""
    revision: str
    """A commit or tag: an unpinned dataset would not reproduce."""

    def __post_init__(self) -> None:
        require(bool(self.name), "finetune.hub.*.name", self.name, "the id of a dataset")
        require(bool(self.revision), "finetune.hub.*.revision", self.revision, "a commit or tag of the dataset")


@dataclass(frozen=True, kw_only=True)
class FinetuneHubConfig:
    """Where on the hub the tasks are."""

    glue: TaskDatasetConfig
    """With a configuration for each of the nine tasks (`cola`, `sst2`, ...), as in nyu-mll/glue."""
    imdb: TaskDatasetConfig
    squad: TaskDatasetConfig


@dataclass(frozen=True, kw_only=True)
class TaskTraining:
    """How a model is fine-tuned on a task: AdamW, a linear warm-up and a linear decay to 0."""

    epochs: int
    """Passes over the training examples."""
    learning_rate: float
    """The highest, after the warm-up."""
    batch_size: int
    """Examples (of SQuAD: windows) per optimizer step."""
    max_tokens: int
    """Longest input, special tokens included; of what is longer, the end is cut off. Never more than the model's positions."""
    warmup_fraction: float
    """Share of all steps."""
    weight_decay: float
    """AdamW's."""
    max_steps: int | None = None
    """End after so many steps, with the schedule of that; null: after `epochs`."""
    overlap_tokens: int = 128
    """SQuAD: tokens of a context that two windows of it share, as `doc_stride` of transformers' run_qa."""
    group_by_length: bool = True
    """Batches of examples of similar length, in random order: less padding."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            require(getattr(self, name) >= 1, f"finetune.training.{name}", getattr(self, name), "1 or more")
        require(self.max_tokens >= 8, "finetune.training.max_tokens", self.max_tokens, "8 or more")
        require(self.learning_rate > 0, "finetune.training.learning_rate", self.learning_rate, "more than 0")
        require(self.weight_decay >= 0, "finetune.training.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup_fraction < 1, "finetune.training.warmup_fraction", self.warmup_fraction, "0 <= x < 1")
        require(
            self.max_steps is None or self.max_steps >= 1,
            "finetune.training.max_steps",
            self.max_steps,
            "null or 1 and more",
        )
        require(self.overlap_tokens >= 0, "finetune.training.overlap_tokens", self.overlap_tokens, "0 or more")


@dataclass(frozen=True, kw_only=True)
class DistillationWeights:
    """What each loss counts for in a task distillation."""

    kd: float = 0.5
    """The student's answers beside the fine-tuned teacher's."""
    task: float = 0.5
    """The task's own loss, on the examples that have a label."""
    hidden: float = 0.0
    """1 - cos of the last hidden states; they have to be in the cache (`cache.hidden`)."""

    def __post_init__(self) -> None:
        for name in ("kd", "task", "hidden"):
            value = getattr(self, name)
            require(value >= 0, f"finetune.distillation.weights.{name}", value, "0 or more")
        require(
            self.kd + self.task + self.hidden > 0,
            "finetune.distillation.weights",
            to_plain(self),
            "at least one above 0",
        )


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """`pipeline finetune --distil`: how a student learns from the fine-tuned teacher's cached answers.

    The values are those of DistilBERT's run_squad_w_distillation (Sanh et al. 2019).
    """

    temperature: float = 2.0
    """Of both distributions; scores have none."""
    weights: DistillationWeights = DistillationWeights()

    def __post_init__(self) -> None:
        require(self.temperature > 0, "finetune.distillation.temperature", self.temperature, "more than 0")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task. What is left out is as the task's official layout and `finetune.training` have it."""

    kind: TaskKind | None = None
    """Which task it is; null: the one that it is called after."""
    folder: str | None = None
    """For `finetune.source: files`, relative to the project; null: a folder of the task's name in `finetune.folder`."""
    train: tuple[str, ...] | None = None
    """Files in that folder (.tsv as GLUE has it, .csv, .parquet, SQuAD's .json); null: those of the official layout."""
    evaluation: tuple[str, ...] | None = None
    """The same for the examples that the scores are of."""
    held_out: float | None = None
    """Evaluate on this share of the training examples instead, taken from them (SQuAD: whole articles). For data without a dev set."""
    validation: float | None = joined(None)
    """Take this share of the training examples out too: neither learned from nor part of the score, but to choose by (`keep: best`)."""
    train_examples: int | None = None
    """Only so many, drawn without a look at the seed; null: all."""
    evaluation_examples: int | None = None
    """The same for the evaluation, and for the validation."""
    zero_shot: tuple[str, ...] = joined(())
    """Other tasks with as many classes, in `tasks` or called as one of the kinds: their evaluation examples are answered too, untrained."""
    training: dict[str, Any] | None = None
    """What differs from `finetune.training`."""
    distillation: dict[str, Any] | None = joined(None)  # noqa: RUF009  None
    """What differs from `finetune.distillation`."""
    unlabelled: tuple[str, ...] | None = joined(None)
    """Files of further texts without labels, for the task's cache (Bucila et al. 2006): the teacher's answers are their labels. In
    the task's folder, or, with `finetune.source: hub`, relative to the project; null: none."""

    def __post_init__(self) -> None:
        for name in ("train", "evaluation", "unlabelled"):
            require(getattr(self, name) != (), f"finetune.tasks.*.{name}", [], "null or at least one file")
        for name in ("train_examples", "evaluation_examples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"finetune.tasks.*.{name}", value, "null or 1 and more")
        for name in ("held_out", "validation"):
            value = getattr(self, name)
            require(value is None or 0 < value < 1, f"finetune.tasks.*.{name}", value, "null or 0 < x < 1")
        require(
            (self.held_out or 0) + (self.validation or 0) < 1,
            "finetune.tasks.*.validation",
            self.validation,
            "a share that leaves something to learn from beside held_out",
        )
        require(
            len(set(self.zero_shot)) == len(self.zero_shot),
            "finetune.tasks.*.zero_shot",
            list(self.zero_shot),
            "other tasks, each once",
        )
        require(
            self.held_out is None or self.evaluation is None,
            "finetune.tasks.*.evaluation",
            list(self.evaluation or ()),
            "null, as held_out takes the evaluation's examples from the training's",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """`pipeline finetune`: a model with a new head on downstream tasks, once per seed."""

    source: Literal["hub", "files"]
    """`hub`: the datasets of `finetune.hub`. `files`: the tasks' own layouts, below `finetune.folder`."""
    seeds: tuple[int, ...]
    """Each task is done once per seed, which draws the new head, the order of the examples and the dropout."""
    training: TaskTraining
    tasks: dict[str, TaskConfig]
    distillation: DistillationConfig | None = joined(None)  # noqa: RUF009  None
    """For `--distil`; null: the values of DistilBERT's script."""
    hub: FinetuneHubConfig | None = None
    folder: str | None = None
    """For `source: files`: where each task has a folder of its own."""
    keep: Literal["none", "best", "all"] = "best"
    """Which fine-tuned models stay in `models/finetuned`: none, that of the seed with the best score, or one per seed."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward passes; `auto`: bfloat16 where the hardware has it, else float32."""
    evaluation_batch_size: int = 64
    """Examples per forward pass when scores are computed."""
    checkpoint_steps: int = 1000
    """Steps from one checkpoint to the next."""
    log_steps: int = 20
    """Steps from one line of the log to the next."""

    def __post_init__(self) -> None:
        require(
            len(self.seeds) >= 1 and len(set(self.seeds)) == len(self.seeds),
            "finetune.seeds",
            list(self.seeds),
            "one or more, each once",
        )
        for seed in self.seeds:
            require_seed("finetune.seeds", seed)
        for name in ("evaluation_batch_size", "checkpoint_steps", "log_steps"):
            require(getattr(self, name) >= 1, f"finetune.{name}", getattr(self, name), "1 or more")
        require(bool(self.tasks), "finetune.tasks", {}, "at least one task")
        require(
            self.source == "files" or self.hub is not None,
            "finetune.hub",
            None,
            "datasets and their revisions, as finetune.source is hub",
        )
        for name in self.tasks:
            require(
                bool(re.fullmatch(r"\w[\w.-]*", name)),
                "finetune.tasks",
                name,
                "names for a folder: letters, digits, and then also . - _",
            )
            self.kind_of(name)
            self.training_of(name)
            self.distillation_of(name)
            for asked in (name, *self.zero_shot_of(name)):
                if self.source == "files":
                    self.folder_of(asked)

    def settings_of(self, name: str) -> TaskConfig:
        """What `tasks` says of a task: nothing where it is only named in a `zero_shot`."""
        return self.tasks.get(name, TaskConfig())

    def zero_shot_of(self, name: str) -> dict[str, TaskKind]:
        """The tasks that the model of `name` answers untrained, and of which kinds they are. Raises `ConfigError` as `kind_of`."""
        kinds: dict[str, TaskKind] = {kind: kind for kind in TASK_KINDS}
        return {
            other: kinds[other] if other in kinds and other not in self.tasks else self.kind_of(other)
            for other in self.tasks[name].zero_shot
        }

    def kind_of(self, name: str) -> TaskKind:
        """Which task `name` is. Raises `ConfigError` for one that is not in `tasks`, or of no kind that there is."""
        if name not in self.tasks:
            raise ConfigError(f"task {name!r} is not in finetune.tasks; {suggest(name, self.tasks)}")
        kind = self.tasks[name].kind or name
        for known in TASK_KINDS:
            if known == kind:
                return known
        raise ConfigError(
            f"finetune.tasks.{name} does not say of which kind it is; expected kind: one of {', '.join(TASK_KINDS)}, "
            "unless it is called after one"
        )

    def training_of(self, name: str) -> TaskTraining:
        """`training` with the changes of the task. Raises `ConfigError` naming the task."""
        return self._of_task(name, "training", self.training)

    def distillation_of(self, name: str) -> DistillationConfig:
        """`distillation` with the changes of the task. Raises `ConfigError` naming the task."""
        return self._of_task(name, "distillation", self.distillation or DistillationConfig())

    def _of_task(self, name: str, section: str, base: T) -> T:
        """`base` with what the task's own `section` says."""
        changes = getattr(self.tasks[name], section) or {}
        try:
            return build(type(base), merged(to_plain(base), changes), f"finetune.tasks.{name}.{section}")
        except ConfigError as error:
            found = str(error)
            raise ConfigError(
                found if found.startswith(("unknown key", "finetune.tasks")) else f"finetune.tasks.{name}: {found}"
            ) from None

    def folder_of(self, name: str) -> str:
        """The folder of the task's files. Raises `ConfigError` where none is named."""
        task = self.settings_of(name)
        if task.folder is not None:
            return task.folder
        if self.folder is None:
            raise ConfigError(
                f"finetune.tasks.{name}.folder is null, and so is finetune.folder; expected where its files are, as "
                "finetune.source is files"
            )
        return f"{self.folder}/{name}"
