"""Student models: what they can be, and their initial weights from a teacher's.

A module per architecture (`students.NAME.architecture`) builds the model and copies the teacher into it; `ARCHITECTURES` is where
they meet, and all that another one has to be entered into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed

from stages import bilstm
from stages.config import StudentConfig
from stages.config.base import refuse
from stages.figures import Objective
from stages.model_config import class_name
from stages.students import distilbert, same
from stages.students.check import check_student
from stages.students.layer_map import layer_map, spread_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "ARCHITECTURES",
    "INPUTS",
    "Architecture",
    "build_student",
    "copied_blocks",
    "copy_teacher",
    "in_words",
    "inputs_of",
    "kind_of",
    "layer_map",
    "spread_layers",
]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How students of one architecture come to be."""

    build: Callable[[StudentConfig, str, Mapping[str, Any], Objective], PreTrainedModel]
    """From the student's parameters, its name, the teacher's configuration and objective: a model with random weights, seeded by
    the caller. Raises `ConfigError` for a shape that is not possible, `InputError` for a teacher that it cannot have."""
    copy: Callable[[PreTrainedModel, PreTrainedModel, tuple[int, ...]], None] | None
    """Copies into a student, from a teacher, the blocks of these numbers and all that is no block; None: its weights are random."""
    title: str | None
    """What a model card calls it; None: by its teacher's class."""


ARCHITECTURES: dict[str, Architecture] = {
    "distilbert": Architecture(build=distilbert.build, copy=distilbert.copy, title="a DistilBERT"),
    "same": Architecture(build=same.build, copy=same.copy, title=None),
    bilstm.KIND: Architecture(build=bilstm.build, copy=bilstm.copy, title="a BiLSTM"),
}
"""By `students.NAME.architecture`."""

INPUTS = ["input_ids", "attention_mask"]
"""What a cache's sequences consist of, and a student's tokenizer prepares: token types mean nothing to most families."""


def build_student(
    student: StudentConfig, name: str, teacher_config: Mapping[str, Any], objective: Objective = "masked"
) -> PreTrainedModel:
    """The student called `name` with random weights (seeded), for a teacher with this configuration, in eval mode.

    It has been tried, as `check_student` says. Raises `ConfigError` where the shape is not possible, `InputError` for a teacher of
    another family and for a student that the losses cannot train.
    """
    architecture = ARCHITECTURES[student.architecture]
    if architecture.copy is None and student.initialise == "teacher":
        raise refuse(
            f"students.{name}.initialise", "teacher", f"random, as a {student.architecture} has no blocks of a teacher"
        )
    set_seed(student.seed)
    model = architecture.build(student, name, teacher_config, objective)
    model.train(False)
    check_student(model, name, objective)
    return model


@torch.no_grad()
def copy_teacher(
    student: StudentConfig, model: PreTrainedModel, teacher: PreTrainedModel, blocks: tuple[int, ...]
) -> None:
    """Copy the chosen blocks of `teacher`, its embeddings and its whole head into `model`, which `build_student` made.

    Raises `InputError` where a block cannot stand in its place in the student.
    """
    copy = ARCHITECTURES[student.architecture].copy
    assert copy is not None, "build_student has refused it"
    copy(model, teacher, blocks)


def copied_blocks(student: StudentConfig, name: str, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's blocks that `copy_teacher` puts into the student; none for one that has no place for them.

    Raises `ConfigError` for blocks that the teacher does not have.
    """
    return layer_map(student, name, teacher_layers) if student.is_transformer else ()


def in_words(blocks: Sequence[int]) -> str:
    """What `copy_teacher` gives a student, with the blocks of these numbers."""
    if not blocks:
        return "embeddings and head"
    return f"embeddings, head and block{'' if len(blocks) == 1 else 's'} {', '.join(map(str, blocks))}"


def inputs_of(model: PreTrainedModel) -> list[str] | None:
    """What the tokenizer of a student is to prepare; None: whatever it does, as the student tells two segments apart."""
    return None if getattr(model.config, "type_vocab_size", 0) > 1 else INPUTS


def kind_of(student: StudentConfig, teacher_config: Mapping[str, Any], objective: Objective) -> tuple[str, str]:
    """What a model card calls a student, and its tag on the hub."""
    title = ARCHITECTURES[student.architecture].title
    if title is not None:
        return title, student.architecture
    return class_name(teacher_config, objective), str(teacher_config["model_type"])
