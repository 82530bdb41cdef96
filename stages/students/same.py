"""A student of its teacher's own class, with fewer blocks: DistilRoBERTa, DistilGPT2, and whatever else `transformers` has.

What is known of the family is its configuration and the list of its blocks. That a copied block computes in the student what it
computes in the teacher is not taken on trust: its modules and their settings are compared with the teacher's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from stages.blocks import blocks_of
from stages.config import StudentConfig
from stages.errors import InputError
from stages.figures import Objective
from stages.model_config import refuse_unsupported
from stages.models import language_model_from_config
from stages.students.shorter_config import shorter_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLACE = re.compile(r"(layer|block)_?(idx|id|index|number)")
"""Names under which a block keeps its place, which moving it changes, for the cache of keys and values."""


_DROPOUT = {nn.Dropout, nn.Identity}
"""Families have the second in the place of the first where dropout is 0."""


def build(
    student: StudentConfig, name: str, teacher_config: Mapping[str, Any], objective: Objective
) -> PreTrainedModel:
    """A model of the teacher's class and the student's shape with random weights. Raises as `stages.students.Architecture.build`."""
    refuse_unsupported(teacher_config, "of the teacher", objective)
    config = shorter_config(student, name, teacher_config)
    try:
        model = language_model_from_config(config, objective)
    except (ValueError, StrictDataclassError) as error:  # of a family's own checks
        raise InputError(
            f"no model of type {teacher_config['model_type']!r} can be built with the shape of students.{name} "
            f"({' '.join(str(error).split())}); expected a shape that this family takes; change students.{name}"
        ) from error
    blocks_of(model)  # a family whose blocks are not found is refused before anything is copied
    return model


def copy(student: PreTrainedModel, teacher: PreTrainedModel, blocks: tuple[int, ...]) -> None:
    """Copy all tensors under their own names, those of the chosen blocks under their new number.

    Raises `InputError` for a block whose modules or settings are others in the student.
    """
    ours, theirs = blocks_of(student), blocks_of(teacher)
    for place, block in enumerate(blocks):
        difference = _difference(ours[place], theirs[block])
        if difference:
            raise InputError(
                f"block {block} of the teacher cannot be block {place} of a student of type {teacher.config.model_type!r}: "
                f"{difference}; expected another layer_map, one that leaves such blocks where they are"
            )
    prefix = _name_of(theirs, teacher)
    source: dict[str, Tensor] = teacher.state_dict()
    target = {name: tensor for name, tensor in source.items() if not name.startswith(f"{prefix}.")}
    for place, block in enumerate(blocks):
        target |= {
            f"{prefix}.{place}.{name.removeprefix(f'{prefix}.{block}.')}": tensor
            for name, tensor in source.items()
            if name.startswith(f"{prefix}.{block}.")
        }
    try:
        student.load_state_dict(target, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"a teacher of type {teacher.config.model_type!r} has tensors that depend on the number of its blocks: "
            f"{' '.join(str(error).split())[:200]}; expected a family that keeps them in its blocks"
        ) from error


def _name_of(wanted: nn.Module, model: nn.Module) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]


def _difference(ours: nn.Module, theirs: nn.Module) -> str | None:
    """The first difference between two blocks that does not come from their weights, place or dropout."""
    of_ours, of_theirs = (dict(block.named_modules()) for block in (ours, theirs))
    if of_ours.keys() != of_theirs.keys():
        return f"it has {_some(of_theirs.keys() - of_ours.keys())}, and the student has {_some(of_ours.keys() - of_theirs.keys())}"
    for path, module in of_ours.items():
        other = of_theirs[path]
        if type(module) is not type(other) and not {type(module), type(other)} <= _DROPOUT:
            return f"its {path} is {type(other).__name__}, and the student's {type(module).__name__}"
        settings, expected = _settings(module), _settings(other)
        for key in settings.keys() | expected.keys():
            if settings.get(key) != expected.get(key):
                at = f"{path}.{key}" if path else key
                return f"its {at} is {expected.get(key)}, and the student's {settings.get(key)}"
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes by, beside its weights; shapes of the weights included."""
    plain = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, bool | int | float | str | tuple)
        and not (key.startswith("_") or "drop" in key or _PLACE.fullmatch(key) or type(module) in _DROPOUT)
    }
    return plain | {name: tuple(tensor.shape) for name, tensor in module.named_parameters(recurse=False)}


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "nothing more"
