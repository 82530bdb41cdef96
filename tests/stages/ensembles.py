"""Projects with a second teacher."""

from __future__ import annotations

import shutil
from typing import Any

from stages import cache_teacher, init_student
from stages.models import load_tokenizer
from tests.stages.conftest import Project
from tests.stages.tiny_models import tiny_bert
from tests.tiny import PARAMS, merged

SHARES = {"teacher": 0.7, "second": 0.3}


def with_second(shares: dict[str, float] | None = SHARES, **overrides: Any) -> dict[str, Any]:
    """Overrides of the tiny parameters that declare a teacher `second` of three blocks, and the ensemble of both."""
    second = merged(PARAMS["teacher"], {"train": {"layers": 3, "seed": 5}})
    return merged({"teachers": {"second": second}, "train": {"ensemble": shares}}, overrides)


def give_second(project: Project, *, hidden: int = 32, seed: int = 7) -> None:
    """Put its model into the project: random weights."""
    folder = project.artefacts.of_teacher("second").teacher
    tokenizer = load_tokenizer(project.artefacts.tokens / "tokenizer")
    teacher = tiny_bert(vocabulary=len(tokenizer), hidden=hidden, layers=3, positions=16, seed=seed)
    teacher.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cache_second(project: Project) -> None:
    """What `pipeline cache-teacher --teacher second` does."""
    cache_teacher.run(project.config.of_teacher("second"), project.context.of_teacher("second"))


def prepare(project: Project, *, hidden: int = 32, seed: int = 7) -> None:
    """Both caches and the student's initial weights."""
    give_second(project, hidden=hidden, seed=seed)
    project.run(cache_teacher)
    cache_second(project)
    for name in project.config.students:
        project.run(init_student, name)


def forget_training(project: Project) -> None:
    """Remove what training has left."""
    for folder in (project.artefacts.checkpoints, project.artefacts.student, project.artefacts.runs):
        shutil.rmtree(folder, ignore_errors=True)
