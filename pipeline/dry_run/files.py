"""Whether files are there, and of these parameters: what all previews say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config import Config, to_plain
from stages.context import Artefacts, Context, Figure
from stages.errors import StageError
from stages.provenance import RESOLVED, read_resolved
from storage import differing_fields

MISSING = "missing"
SAME = "there, of these parameters"
CANNOT_BEGIN = "cannot begin"


def wanted_of(config: Config, *sections: str) -> dict[str, Any]:
    """The parameters in these sections, as an output records them."""
    return {section: to_plain(getattr(config, section)) for section in sections}


def wanted_of_teacher(config: Config) -> dict[str, Any]:
    """What determines the teacher: where it is trained here, its masking too."""
    return wanted_of(config, "teacher", *(() if config.teacher.training is None else ("masking",)))


def show(
    context: Context, stage: str, rows: dict[str, Figure], outputs: Mapping[Path, Mapping[str, Any] | None]
) -> None:
    """Show what a stage says, and below it the `state` of each of its outputs."""
    shown = context.artefacts.shown
    rows.update({f"writes {shown(path)}": state(path, wanted) for path, wanted in outputs.items()})
    context.progress.summary(f"dry run of {stage}", rows)


def inputs(context: Context, paths: Mapping[Path, Mapping[str, Any] | None]) -> dict[str, Figure]:
    """The `state` of each path that is read, and what makes those that are missing."""
    artefacts = context.artefacts
    return {
        f"reads {artefacts.shown(path)}": or_made_by(state(path, wanted), _command(path, artefacts))
        for path, wanted in paths.items()
    }


def or_made_by(found: str, command: str | None) -> str:
    """What is said of an input: the `state` that was `found`, and where it is missing the command that makes it."""
    return f"{MISSING}; run: {command}" if found == MISSING and command else found


def _command(path: Path, artefacts: Artefacts) -> str | None:
    """What makes a path of the project; None for what people bring along."""
    commands = {
        artefacts.documents: "pipeline corpus",
        artefacts.tokens: "pipeline tokenize",
        artefacts.teacher: artefacts.teacher_command,
        artefacts.teacher_figures: artefacts.teacher_command,
        artefacts.student_init(path.name): f"pipeline init-student {path.name}",
        artefacts.cache_run: artefacts.cache_command,
        artefacts.student: "pipeline train-student",
        artefacts.runs / "train.json": "pipeline train-student",
        artefacts.runs / "evaluation.json": "pipeline evaluate",
    }
    return commands.get(path)


def state(path: Path, wanted: Mapping[str, Any] | None) -> str:
    """Whether a file or folder is there, and, where it records its parameters, whether they are those `wanted`."""
    if not path.exists():
        return MISSING
    if wanted is None or not (path / RESOLVED).is_file():
        return "there"
    try:
        resolved = read_resolved(path, "the command that writes it")
    except StageError as error:
        return f"there, but {error}"
    differences = differing_fields(wanted, {name: resolved.get(name) for name in wanted}, found_in="there")
    return f"there, of other parameters: {'; '.join(differences)}" if differences else SAME


def recorded(file: Path) -> dict[str, Any]:
    """What a file of figures says; nothing where it is not there or cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
