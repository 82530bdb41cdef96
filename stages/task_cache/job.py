"""What a process does that computes shards of a task's cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stages.cache_description import require_teacher
from stages.device import torch_dtype
from stages.model_config import ModelShape
from stages.sequences import TokenStore
from stages.sharing import Place
from stages.task_cache.description import require_examples
from stages.task_cache.examples import TaskExamples
from stages.task_cache.targets import SeenExamples, TaskComputer, read_examples
from stages.task_models import load_task_model
from stages.teacher_job import TeacherJob
from storage import ShardId, ShardPublisher


@dataclass(frozen=True, kw_only=True)
class TaskJob(TeacherJob):
    """The fine-tuned teacher's pass; its cache holds no LM head."""

    def head_is_there(self) -> bool:
        """There is nothing to be loaded for it."""
        return True

    def require_inputs(self) -> None:
        """Raise `InputError` unless inputs and labels are those of the description."""
        super().require_inputs()
        require_examples(self.description, TaskExamples.open(self.artefacts.tokens))

    def load(self, place: Place, publisher: ShardPublisher) -> TaskComputer:
        """The fine-tuned teacher."""
        del publisher
        config, task = self.config.cache, self.description.task
        assert task is not None
        teacher = load_task_model(
            self.artefacts.teacher,
            task["head"],
            None if task["labels"] is None else tuple(task["labels"]),
            attention=config.attention,
            dtype=torch_dtype(config.precision),
            device=place.device,
            command=self.artefacts.teacher_command,
        )
        require_teacher(self.description, self.artefacts.teacher)  # after it was loaded: it may be replaced at any time
        return TaskComputer(
            teacher,
            layers=ModelShape.of(self.description.teacher_config).layers,
            pad_id=self.description.pad_id,
            batch_tokens=config.batch_tokens,
            hidden=self.description.splits["train"].layout.hidden != "none",
            compiled=config.compile,
        )

    def sees(self, tokens: TokenStore) -> Callable[[ShardId], SeenExamples]:
        """Reads the inputs of a shard."""
        examples = TaskExamples.open(self.artefacts.tokens)
        return lambda shard: read_examples(tokens, examples, shard, self.description.span(shard))
