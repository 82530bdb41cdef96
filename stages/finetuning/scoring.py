"""What a fine-tuned model is scored on: the evaluation, and beside it a validation part, and other tasks that it never learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.tasks.data import TaskData
from stages.tasks.task import Encoded, Outputs, Task
from stages.tasks.zero_shot import OtherTasks

Encode = Callable[[Task[Any], Sequence[Any]], Encoded]
Answer = Callable[[Encoded], Sequence[Outputs]]
"""A model's outputs for inputs, in their order."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Examples of a task, by set, and the inputs that they are."""

    task: Task[Any]
    sets: Mapping[str, tuple[Sequence[Any], Encoded]]

    @classmethod
    def of(cls, task: Task[Any], sets: Mapping[str, Sequence[Any]], encode: Encode) -> Questions:
        """The examples as inputs."""
        return cls(task=task, sets={name: (examples, encode(task, examples)) for name, examples in sets.items()})

    def __len__(self) -> int:
        return sum(len(encoded.rows) for _, encoded in self.sets.values())

    @property
    def examples(self) -> int:
        """How many there are."""
        return sum(len(examples) for examples, _ in self.sets.values())

    def scored(self, answer: Answer) -> dict[str, Any]:
        """The official `figures` of the answers, and the `score`, which is the mean of some of them."""
        figures = self.task.figures({name: (*given, answer(given[1])) for name, given in self.sets.items()})
        return {
            "score": sum(figures[name] for name in self.task.scored_by) / len(self.task.scored_by),
            "figures": figures,
        }

    def majority(self) -> dict[str, float]:
        """The official figures of always saying the most frequent class of a set, which takes no model."""
        assert self.task.labels is not None
        said = {}
        for name, (examples, encoded) in self.sets.items():
            counts = np.bincount([example.label for example in examples], minlength=len(self.task.labels))
            logits = np.eye(len(counts), dtype=np.float32)[counts.argmax()]
            said[name] = examples, encoded, [(logits,)] * len(examples)
        return self.task.figures(said)


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that a fine-tuned model is asked."""

    evaluation: Questions
    validation: Questions | None
    """None where no part was taken out for it."""
    zero_shot: Mapping[str, Questions]
    """By the name of the other task."""

    @classmethod
    def of(cls, task: Task[Any], data: TaskData[Any], others: OtherTasks, encode: Encode) -> Examination:
        """Of a task and its data, and of what is asked beside."""
        return cls(
            evaluation=Questions.of(task, data.evaluation, encode),
            validation=Questions.of(task, data.validation, encode) if data.validation else None,
            zero_shot={name: Questions.of(other, sets, encode) for name, (other, sets) in others.items()},
        )

    def __len__(self) -> int:
        """Inputs."""
        return sum(map(len, self._parts().values()))

    @property
    def examples(self) -> dict[str, int]:
        """How many there are in `evaluation`, `validation` and `zero_shot <task>`, where there are any."""
        return {part: asked.examples for part, asked in self._parts().items()}

    def scored(self, answer: Answer) -> dict[str, Any]:
        """As it stands in a result: `score`, `figures` and `scored_by`, and what was asked beside: `validation`, `zero_shot`."""
        found = {**self.evaluation.scored(answer), "scored_by": list(self.evaluation.task.scored_by)}
        if self.validation is not None:
            found["validation"] = self.validation.scored(answer)
        if self.zero_shot:
            found["zero_shot"] = {
                name: {"kind": asked.task.kind, **asked.scored(answer), "majority": asked.majority()}
                for name, asked in self.zero_shot.items()
            }
        return found

    def _parts(self) -> dict[str, Questions]:
        parts = {"evaluation": self.evaluation}
        if self.validation is not None:
            parts["validation"] = self.validation
        return {**parts, **{f"zero_shot {name}": asked for name, asked in self.zero_shot.items()}}
