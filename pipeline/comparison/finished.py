"""What the stages left in the folder of a run: figures of its training, held-out figures, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.errors import InputError

TRAINING, EVALUATION, PROVENANCE = "train.json", "evaluation.json", "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A folder in which `train-student` and `evaluate` wrote about one student."""

    folder: Path

    @classmethod
    def is_at(cls, folder: Path) -> bool:
        """Whether a folder has figures of a student."""
        return (folder / EVALUATION).is_file() or (folder / TRAINING).is_file()

    @cached_property
    def training(self) -> Mapping[str, Any]:
        """`train.json`; empty where it is not there, as of initial weights."""
        return read_json(self.folder / TRAINING)

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """`evaluation.json`; empty where the student was not evaluated, or another one was."""
        found = read_json(self.folder / EVALUATION)
        return {} if self.training and found.get("weights") != self.training.get("weights") else found

    @cached_property
    def parameters(self) -> Mapping[str, Any]:
        """All that the student was trained with, as in params.yaml; empty where that is not known."""
        found: Mapping[str, Any] = read_json(self.folder / PROVENANCE).get("parameters", {})
        return found

    @property
    def weights(self) -> str | None:
        """The first digits of the digest of the student's weights."""
        found: str | None = self.training.get("weights") or self.evaluation.get("weights")
        return found


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file. Raises `InputError` for one that cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}); remove it and run the command that wrote it again"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object; remove it and run the command that wrote it again")
    return content
