"""The model that is fine-tuned: which one it is, and what its results are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stages.context import Context
from stages.errors import InputError
from stages.models import require_model, weights_digest
from stages.task_models import BaseModel
from stages.tasks.task import Heads


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is fine-tuned."""

    name: str
    base: BaseModel
    path: str
    """Its folder, relative to the project where it lies in it."""
    weights: str
    """Digest of its files."""
    results: Path

    @classmethod
    def of(cls, model: str, name: str | None, heads: set[Heads], context: Context, *, distil: bool) -> Self:
        """`model` is `student`, `teacher` or a folder relative to the project; its results are called `name`, else after it.

        Raises `InputError` where there is no such model, or none that can have these heads.
        """
        folder = _folder_of(model, context)
        base = BaseModel.of(folder, heads)
        called = name or _name_of(folder, context) + ("-distilled" if distil else "")
        return cls(
            name=called,
            base=base,
            path=_shown_path(folder, context),
            weights=weights_digest(folder),
            results=context.artefacts.finetuning / called,
        )


def _folder_of(model: str, context: Context) -> Path:
    artefacts = context.artefacts
    if model == "student":
        require_model(artefacts.student, "the trained student", "pipeline train-student")
        return artefacts.student
    if model == "teacher":
        require_model(artefacts.teacher, "the teacher", artefacts.teacher_command)
        return artefacts.teacher
    folder = artefacts.project / model
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} holds no model; expected student, teacher, or a Hugging Face model folder (--model), with its config.json"
        )
    return folder


def _shown_path(folder: Path, context: Context) -> str:
    project, folder = context.artefacts.project.resolve(), folder.resolve()
    return folder.relative_to(project).as_posix() if folder.is_relative_to(project) else str(folder)


def _name_of(folder: Path, context: Context) -> str:
    """`student-init-half` for `models/student-init/half`; the folder's own name elsewhere. Raises `InputError` for a reserved one."""
    models = (context.artefacts.project / "models").resolve()
    if folder.resolve().is_relative_to(models):
        return "-".join(folder.resolve().relative_to(models).parts)
    if folder.name in {"student", "teacher"}:
        raise InputError(f"{folder} would be called {folder.name!r}, as another model is; give it a name with --name")
    return folder.resolve().name
