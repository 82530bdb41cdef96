"""The whole of params.yaml as one frozen, checked value, and the part of it that is a cache's identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from stages.config.base import build, did_you_mean, joined, merged, moved, require, suggest, to_plain
from stages.config.cache import RUNGS, CacheConfig, CachedSequences
from stages.config.corpus import (
    CorpusConfig,
    DocstringsConfig,
    FilesConfig,
    HubDatasetConfig,
    MaskingConfig,
    SourceConfig,
    TokenizeConfig,
    TrainTokenizerConfig,
)
from stages.config.ensemble import check_ensemble, check_ensemble_widths, check_teachers
from stages.config.finetune import DistillationConfig, FinetuneConfig, TaskConfig, TaskTraining
from stages.config.layers import RelationsConfig, check_inner_shapes
from stages.config.models import AdaptTeacherConfig, StudentConfig, TeacherConfig, TeacherTraining, TrainTeacherConfig
from stages.config.presets import PRESETS
from stages.config.targets import check_objective, check_targets, check_teacher_layers
from stages.config.training import CompareConfig, EvaluateConfig, LossWeights, MachineConfig, TrainConfig
from stages.config.validation import ValidationConfig, check_metric
from stages.errors import ConfigError
from storage import Layout

__all__ = [
    "ALGORITHMS",
    "PRESETS",
    "AdaptTeacherConfig",
    "CacheConfig",
    "CachedSequences",
    "CompareConfig",
    "Config",
    "ConfigError",
    "CorpusConfig",
    "DistillationConfig",
    "DocstringsConfig",
    "EvaluateConfig",
    "FilesConfig",
    "FinetuneConfig",
    "HubDatasetConfig",
    "LossWeights",
    "MachineConfig",
    "MaskingConfig",
    "RelationsConfig",
    "SourceConfig",
    "StudentConfig",
    "TaskConfig",
    "TaskTraining",
    "TeacherConfig",
    "TeacherTraining",
    "TokenizeConfig",
    "TrainConfig",
    "TrainTeacherConfig",
    "TrainTokenizerConfig",
    "ValidationConfig",
    "cache_spec",
    "check_ensemble_widths",
    "check_student_shape",
    "check_teacher_layers",
    "did_you_mean",
    "load_config",
    "suggest",
    "to_plain",
]

ALGORITHMS = {"corpus": 1, "tokenize": 1, "masking": 1, "teacher": 1, "targets": 1}
"""Raised by hand when a change of code changes what is cached for the same parameters: cache-teacher has no code
dependency in dvc.yaml, so that an edited comment does not cost GPU days."""

DRAWS = {"draws": 2}
"""The same for the ids that are drawn; it stands only where there are draws, so that other caches keep their names."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All parameters. Being constructed, it has refused what contradicts itself across sections."""

    corpus: CorpusConfig
    tokenize: TokenizeConfig
    masking: MaskingConfig
    teacher: TeacherConfig
    cache: CacheConfig
    students: dict[str, StudentConfig]
    train: TrainConfig
    evaluate: EvaluateConfig
    machine: MachineConfig
    compare: CompareConfig | None = None
    teachers: dict[str, TeacherConfig] | None = joined(None)  # noqa: RUF009  None
    """Further teachers by name, for `train.ensemble`."""
    finetune: FinetuneConfig | None = joined(None)  # noqa: RUF009  None
    """Downstream tasks, for `pipeline finetune`."""

    def __post_init__(self) -> None:
        require(bool(self.students), "students", {}, "at least one student")
        if self.train.student not in self.students:
            raise ConfigError(
                f"train.student is {self.train.student!r}, which is not in students; {suggest(self.train.student, self.students)}"
            )
        check_objective(self.train, self.teacher.objective)
        check_metric(self.train.validation, self.teacher.objective)
        check_targets(self.train, self.cache)
        check_teachers(self.teacher, self.teachers or {})
        check_ensemble(self.train, self.teachers or {})
        if self.teacher.objective == "causal":
            self._check_causal_teacher()
        if self.teacher.source == "train" and self.teacher.train is not None:
            self._check_trained_teacher(self.teacher.train)
        self._check_further_teachers()

    def of_teacher(self, name: str) -> Config:
        """The parameters with the further teacher `name` in the place of the main one, for making it and its cache.

        All else that makes a cache is the same. Raises `ConfigError` for one that is not declared, and where the rest of the
        parameters does not allow for it.
        """
        teachers = self.teachers or {}
        if name not in teachers:
            known = suggest(name, teachers) if teachers else "it declares none"
            raise ConfigError(f"teacher {name!r} is not in teachers; {known}")
        values = {field.name: getattr(self, field.name) for field in fields(Config)}
        try:
            return OfFurtherTeacher(**{**values, "teacher": teachers[name]})
        except ConfigError as error:
            raise ConfigError(f"teachers.{name}: {moved(error, 'teacher', f'teachers.{name}')}") from None

    def of_run(self, name: str, seed: int) -> Config:
        """The parameters of one run of the comparison: `compare.runs.<name>` over `train`, with this seed.

        Runs are checked here and not with the rest: `-S train.weights.mlm=0` must not be refused for what it makes of one.
        A student of random initial weights is drawn anew for each seed, as `<student>-seed-<seed>`. Raises `ConfigError`
        for an unknown run, and for one that contradicts the rest of the parameters.
        """
        train = replace(self._train_of(name), seed=seed)
        students = self.students
        declared = students[train.student]
        if declared.initialise == "random" and declared.seed != seed:
            train = replace(train, student=f"{train.student}-seed-{seed}")
            students = {**students, train.student: replace(declared, seed=seed)}
        try:
            return replace(self, train=train, students=students, compare=None)
        except ConfigError as error:
            raise ConfigError(f"compare.runs.{name}: {error}") from None

    def _train_of(self, name: str) -> TrainConfig:
        runs = self.compare.runs if self.compare else {}
        if name not in runs:
            raise ConfigError(f"run {name!r} is not in compare.runs; {suggest(name, runs)}")
        try:
            train = build(TrainConfig, merged(to_plain(self.train), runs[name]), "train")
        except ConfigError as error:
            raise ConfigError(f"compare.runs.{name}: {error}") from None
        if train.student not in self.students:
            raise ConfigError(
                f"compare.runs.{name}: train.student is {train.student!r}, which is not in students; "
                f"{suggest(train.student, self.students)}"
            )
        return train

    @property
    def student(self) -> StudentConfig:
        """The student that `train-student` trains."""
        return self.students[self.train.student]

    def _check_causal_teacher(self) -> None:
        """Refuse what needs masks; the other keys of `masking` but its seed are unused."""
        reason = "as teacher.objective is causal: nothing is masked"
        require(self.cache.positions != "masked", "cache.positions", "masked", f"all or sampled, {reason}")
        require(self.masking.variants == 1, "masking.variants", self.masking.variants, f"1, {reason}")

    def _check_trained_teacher(self, teacher: TrainTeacherConfig) -> None:
        require(
            self.tokenize.sequence_tokens <= teacher.max_positions,
            "tokenize.sequence_tokens",
            self.tokenize.sequence_tokens,
            f"at most the teacher's positions (teacher.train.max_positions = {teacher.max_positions})",
        )
        if self.tokenize.train is not None and self.tokenize.tokenizer == "train":
            require(
                self.cache.train_top_k <= self.tokenize.train.vocabulary_size,
                "cache.top_k",
                self.cache.train_top_k,
                f"at most the vocabulary (tokenize.train.vocabulary_size = {self.tokenize.train.vocabulary_size})",
            )
        self._check_students(teacher)
        self.check_layers(teacher.layers)

    def check_layers(self, teacher_layers: int) -> None:
        """Refuse to cache layers that a teacher of so many does not have, and losses on others. Raises `ConfigError`."""
        self.cache.check_hidden_layers(teacher_layers)
        self.cache.check_attention_layers(teacher_layers)
        if self._is_learned_from:
            check_teacher_layers(self.train, self.cache, teacher_layers)

    @property
    def _is_learned_from(self) -> bool:
        """Whether `train-student` reads this teacher's cache."""
        return True

    def _check_further_teachers(self) -> None:
        """Refuse further teachers whose caches these parameters do not allow for."""
        for name in self.teachers or {}:
            self.of_teacher(name)

    def _check_students(self, teacher: TrainTeacherConfig) -> None:
        """Refuse students that cannot be made of a teacher of this shape."""
        for name, student in self.students.items():
            layers = student.layer_map or ()
            if student.initialise == "teacher" and student.is_transformer:
                require(
                    student.layers <= teacher.layers and max(layers, default=0) < teacher.layers,
                    f"students.{name}.layer_map" if layers else f"students.{name}.layers",
                    list(layers) or student.layers,
                    f"blocks of the teacher, which has {teacher.layers} (teacher.train.layers)",
                )
        check_student_shape(
            self, teacher_hidden_size=teacher.hidden_size, teacher_attention_heads=teacher.attention_heads
        )


class OfFurtherTeacher(Config):
    """Parameters in which one of `teachers` stands in the place of the main teacher, which students are made of."""

    def _check_students(self, teacher: TrainTeacherConfig) -> None:
        """Nothing: none of them is made of this one."""

    @property
    def _is_learned_from(self) -> bool:
        """Where `train.ensemble` names it; else the losses are on the main teacher's layers."""
        return self.teacher in [(self.teachers or {}).get(name) for name in self.train.ensemble or {}]

    def _check_further_teachers(self) -> None:
        """Nothing: this is the check of one of them."""


def check_student_shape(config: Config, *, teacher_hidden_size: int, teacher_attention_heads: int | None) -> None:
    """Refuse losses on layers, widths or heads of `train.student` that it does not have, or not as the teacher. Raises `ConfigError`."""
    student = config.student
    check_inner_shapes(
        config.train,
        student=config.train.student,
        attends=student.is_transformer,
        layers=student.layers,
        hidden_size=student.hidden_size or teacher_hidden_size,
        attention_heads=student.attention_heads or teacher_attention_heads,
        teacher_hidden_size=teacher_hidden_size,
        teacher_attention_heads=teacher_attention_heads,
    )


def load_config(values: Mapping[str, Any]) -> Config:
    """Check the content of params.yaml. Raises `ConfigError` naming key, value and what is allowed."""
    return build(Config, values)


def cache_spec(config: Config) -> dict[str, Any]:
    """The parameters that determine the cached targets, as plain JSON: one half of a cache's identity.

    Left out: how fast (batch size, device, threads), where from (local paths: the digests of the content stand for
    them), and settings of a source that is not the chosen one.
    """

    def section(value: object, chosen: tuple[str, ...], *optional: str) -> dict[str, Any]:
        plain: dict[str, Any] = to_plain(value)
        for name in optional:
            if name not in chosen:
                plain.pop(name)
            elif name in ("load", "files"):
                for path in ("path", "paths"):
                    plain[name].pop(path, None)
        return plain

    cache = to_plain(config.cache)
    for name in ("batch_tokens", "compile", "targets", "preset", *RUNGS):
        cache.pop(name, None)
    # Only what is not as the format has it anyway: a key that joins later leaves the identity of older caches as it is.
    default = {field.name: field.default for field in fields(Layout)}
    for name, value in config.cache.rungs.items():
        if value is not None and value != default[name]:
            cache[name] = to_plain(value)
    cache.update(
        hidden=config.cache.train_hidden,
        logits=config.cache.train_logits,
        top_k=config.cache.train_top_k,
        temperatures=list(config.cache.declared_temperatures),
        yardstick="lossless" if config.cache.preset == "lossless" else "exact",
    )
    masking = to_plain(config.masking)
    if config.teacher.objective == "causal":
        masking = {"seed": masking["seed"]}  # of draws and sampled positions
    return {
        "corpus": section(config.corpus, (config.corpus.source,), "docstrings", "files", "hub"),
        "tokenize": section(config.tokenize, (config.tokenize.tokenizer,), "train", "load"),
        "masking": masking,
        "teacher": section(config.teacher, config.teacher.used, "train", "load", "adapt"),
        "cache": cache,
        "algorithms": ALGORITHMS | (DRAWS if config.cache.train_draws else {}),
    }
