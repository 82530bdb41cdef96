"""What a student must be for the losses to train it, tried before its first weights are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import InputError
from stages.figures import Objective
from stages.heads import Head
from stages.teacher_loading import check_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_student(model: PreTrainedModel, name: str, objective: Objective) -> None:
    """Refuse a student that the losses cannot train. Raises `InputError`.

    What holds for a teacher holds for it: it runs on ids and mask alone, and its head, as the losses compute it, gives its own
    logits. Its head must end in the projection besides: the losses make the gradients of the logits in one pass with it.
    """
    after = [step["op"] for step in Head.of(model).steps if step["op"] in ("softcap", "scale")]
    if after:
        raise InputError(
            f"a student of type {model.config.model_type!r} (students.{name}) cannot be trained: {', '.join(after)} after its output "
            "projection, which the losses do not compute; expected a head that ends in its projection"
        )
    check_teacher(model, f"students.{name}", objective)
