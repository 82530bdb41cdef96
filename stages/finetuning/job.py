"""One task for one model: how it is fine-tuned, and what determines its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from stages.config import Config, FinetuneConfig, TaskTraining, to_plain
from stages.config.task_cache import finetuning
from stages.context import Context
from stages.device import Precision, resolve_precision
from stages.finetuning.cached import CachedTask, open_task
from stages.finetuning.results import VERSION
from stages.finetuning.subject import Subject
from stages.tasks import TASKS
from stages.tasks.data import check_task
from stages.tasks.task import Task
from stages.tasks.zero_shot import check_zero_shot


@dataclass(frozen=True, kw_only=True)
class Job:
    """One task for one model."""

    name: str
    task: Task[Any]
    training: TaskTraining
    subject: Subject
    settings: FinetuneConfig
    precision: Precision
    cached: CachedTask | None
    """What it learns from instead of the task's training examples."""

    @classmethod
    def of(cls, config: Config, context: Context, name: str, subject: Subject, *, distil: bool) -> Self:
        """The task called `name` in the parameters; with `distil`, its cache is opened. Raises as `open_task`."""
        settings, base = finetuning(config), subject.base
        task = TASKS[settings.kind_of(name)]
        return cls(
            name=name,
            task=task,
            training=base.fitting(settings.training_of(name), name, context.progress.message),
            subject=subject,
            settings=settings,
            precision=resolve_precision(settings.precision, context.device),
            cached=open_task(config, context, name, task, base) if distil else None,
        )

    def check(self, context: Context) -> None:
        """Refuse now what needs no data to be refused: files that are not there, inputs that the task has no room for.

        Raises `InputError` and `ConfigError`.
        """
        project, settings = context.artefacts.project, self.settings
        learning = self.cached is None or settings.settings_of(self.name).validation is not None
        check_task(settings, self.name, self.task, project, learning=learning)
        check_zero_shot(settings, self.name, project)
        self.task.check(self.subject.base.tokenizer, self.training, self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """What determines a result, but for its data and its seed."""
        cached = self.cached
        distillation = (
            {}
            if cached is None
            else {"distillation": {**to_plain(cached.distillation), "cache": cached.reader.root_digest}}
        )
        return {
            "version": VERSION,
            "kind": self.task.kind,
            "training": to_plain(self.training),
            "weights": self.subject.weights,
            **distillation,
            "tokenizer": self.subject.base.tokenizer_as_loaded,
        }
