"""Several teachers: which names they have, and whether one student can learn from all of them at once."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stages.config.base import refuse, require, suggest
from stages.config.models import TeacherConfig
from stages.config.training import TrainConfig
from stages.errors import ConfigError

MAIN = "teacher"
"""What the main teacher, the one of the section `teacher`, is called in `train.ensemble`."""

TERMS = ("kd", "mlm", "clm", "cos", "mse")
"""Losses that an ensemble has: those that read one state or distribution per position, whatever the teacher's depth."""


_ONE_TEACHER = "as train.ensemble is set: layers and widths are compared with those of one teacher"


def check_teachers(teacher: TeacherConfig, teachers: Mapping[str, TeacherConfig]) -> None:
    """Refuse names that are no names of folders, or taken, and teachers that predict other tokens. Raises `ConfigError`."""
    for name, further in teachers.items():
        if name == MAIN or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ConfigError(
                f"teachers has {name!r}; allowed: names of Latin letters, digits, dots, dashes and underscores, which give the "
                f"folder, other than {MAIN!r}"
            )
        require(
            further.objective == teacher.objective,
            f"teachers.{name}.objective",
            further.objective,
            f"{teacher.objective}, as teacher.objective is: the caches are of the same tokens",
        )


def check_ensemble(train: TrainConfig, teachers: Mapping[str, TeacherConfig]) -> None:
    """Refuse an ensemble of unknown teachers, or with losses that it has no meaning for. Raises `ConfigError`."""
    ensemble = train.ensemble
    if ensemble is None:
        return
    for name in ensemble:
        if name != MAIN and name not in teachers:
            raise ConfigError(
                f"train.ensemble has {name!r}, which is neither {MAIN!r} (the section teacher) nor in teachers; "
                f"{suggest(name, (MAIN, *teachers))}"
            )
    require(
        MAIN in ensemble and len(ensemble) > 1,
        "train.ensemble",
        dict(ensemble),
        f"{MAIN}, whose cache has the student's inputs and labels (0.0 where it is not to be learned from), and one or more of teachers",
    )
    require(
        train.layer_map is None, "train.layer_map", [list(p) for p in train.layer_map or ()], f"null, {_ONE_TEACHER}"
    )
    require(not train.hidden_projection, "train.hidden_projection", True, f"false, {_ONE_TEACHER}")
    for name in train.weights.used:
        require(
            name in TERMS,
            f"train.weights.{name}",
            getattr(train.weights, name),
            f"0, as train.ensemble is set: an ensemble has the losses {', '.join(TERMS)}",
        )


def check_ensemble_widths(train: TrainConfig, student: int, teachers: Mapping[str, int]) -> None:
    """Refuse a cosine loss for which no teacher of the ensemble has hidden states of the student's size.

    `student` and `teachers` (by name, those that are learned from) are sizes. Raises `ConfigError`.
    """
    if train.weights.cos > 0 and student not in teachers.values():
        sizes = ", ".join(f"{name} {size}" for name, size in teachers.items())
        raise refuse(
            "train.weights.cos",
            train.weights.cos,
            f"0, as the student's hidden states have {student} values and those of the teachers of train.ensemble others ({sizes})",
        )
