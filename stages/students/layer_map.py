"""Which of a teacher's blocks a student gets."""

from __future__ import annotations

import numpy as np

from stages.config import ConfigError, StudentConfig
from stages.config.base import refuse


def spread_layers(teacher_layers: int, layers: int) -> tuple[int, ...]:
    """Teacher blocks for `layers` student blocks, first and last among them: 12 -> 6 gives DistilBERT's 0 2 4 7 9 11."""
    return tuple(int(i) for i in np.linspace(0, teacher_layers - 1, layers).round())


def layer_map(student: StudentConfig, name: str, teacher_layers: int) -> tuple[int, ...]:
    """The teacher block copied into each student block. Raises `ConfigError` for blocks the teacher does not have."""
    if student.layers > teacher_layers:
        raise refuse(
            f"students.{name}.layers",
            student.layers,
            f"at most the teacher's {teacher_layers} blocks, or initialise: random",
        )
    chosen = student.layer_map or spread_layers(teacher_layers, student.layers)
    if max(chosen) >= teacher_layers:
        raise ConfigError(
            f"students.{name}.layer_map is {list(chosen)}; allowed: blocks 0 to {teacher_layers - 1}, as the teacher has {teacher_layers}"
        )
    return chosen
