"""What a cache is made of: the teacher, what it reads, and what follows from both, for a language model and for a task."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from stages.cache_description import describe, require_teacher, require_tokens
from stages.config import Config
from stages.config.task_cache import finetuning
from stages.context import Context
from stages.models import require_model
from stages.sequences import TokenStore
from stages.task_cache.description import describe_task, require_examples
from stages.task_cache.encode import encode_examples
from stages.task_cache.examples import TaskExamples
from stages.task_cache.job import TaskJob
from stages.task_cache.teacher import require_unseen, with_teacher
from stages.task_models import BaseModel
from stages.tasks import TASKS
from stages.tasks.data import read_task
from stages.teacher_job import TeacherJob
from storage import SPLITS, CacheDescription, Split


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Tokens and teacher of a cache, and its description."""

    config: Config
    context: Context
    """With the teacher chosen."""
    tokens: TokenStore
    description: CacheDescription

    @classmethod
    def find(cls, config: Config, context: Context, splits: Collection[Split] = SPLITS) -> Origin:
        """What `cache-teacher` caches here; a task's examples are encoded where they are not yet, and have one split.

        Raises `InputError` or `ConfigError` where something is missing or does not fit, before any work.
        """
        if context.artefacts.task is not None:
            return cls._of_task(config, context)
        artefacts = context.artefacts
        tokens = TokenStore.open(artefacts.tokens)
        require_model(artefacts.teacher, "the teacher", artefacts.teacher_command)
        description = describe(config, context, tokens, splits)
        return cls(config=config, context=context, tokens=tokens, description=description)

    @classmethod
    def _of_task(cls, config: Config, context: Context) -> Origin:
        name, settings = context.artefacts.task, finetuning(config)
        assert name is not None
        task = TASKS[settings.kind_of(name)]
        context = with_teacher(context)
        base = BaseModel.of(context.artefacts.teacher, {task.head})
        training = base.fitting(settings.training_of(name), name, context.progress.message)
        task.check(base.tokenizer, training, name)
        read = read_task(settings, name, task, context.artefacts.project, context.progress.message)
        require_unseen(read.digests, settings.settings_of(name), context)
        examples = encode_examples(name, task, settings, training, base, read, context)
        tokens = TokenStore.open(context.artefacts.tokens)
        description = describe_task(config, context, tokens, examples)
        return cls(config=config, context=context, tokens=tokens, description=description)

    def job(self) -> TeacherJob:
        """The teacher's pass, for any process on this file system."""
        artefacts = replace(self.context.artefacts, project=self.context.artefacts.project.absolute())
        kind = TeacherJob if self.description.task is None else TaskJob
        return kind(artefacts=artefacts, description=self.description, config=self.config)

    def require_unchanged(self) -> None:
        """Raise `InputError` where tokens, labels or teacher are no longer those of the description."""
        artefacts = self.context.artefacts
        require_tokens(self.description, TokenStore.open(artefacts.tokens))
        if self.description.task is not None:
            require_examples(self.description, TaskExamples.open(artefacts.tokens))
        require_teacher(self.description, artefacts.teacher)
