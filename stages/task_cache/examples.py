"""`data/tasks/<task>`: a task's inputs as teacher and student read them: a token store, and labels and token types beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.errors import InputError
from stages.outputs import write_json
from stages.sequences import TokenStore
from stages.tasks.task import Heads, Row
from storage.files import sha256_file

ARRAYS, RECORD = "examples.safetensors", "task.json"
LABELS: dict[Heads, tuple[str, ...]] = {
    "classification": ("labels",),
    "answers": ("start_positions", "end_positions"),
}
"""What is to be learned from a row, in the order of the columns of `task_label`."""


@dataclass(frozen=True)
class TaskExamples:
    """The examples in a folder, opened for reading."""

    folder: Path
    record: dict[str, Any]
    """What they were made of (`made_of`), the digest of the arrays, and whether there are token types."""

    @classmethod
    def open(cls, folder: Path) -> TaskExamples:
        """What is in the folder. Raises `InputError` where there is none, or where it is damaged."""
        file = folder / RECORD
        try:
            record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return cls(folder, {name: record[name] for name in ("made_of", "sha256", "token_types", "labelled")})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read ({error!r}); run: pipeline cache-teacher --task {folder.name}"
            ) from None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of labels and token types, as they were recorded: no data is read."""
        return str(self.record["sha256"])

    @property
    def token_types(self) -> bool:
        return bool(self.record["token_types"])

    def check(self) -> None:
        """Raise `InputError` where the arrays are no longer what was written."""
        file = self.folder / ARRAYS
        if not file.is_file() or sha256_file(file) != self.digest:
            raise InputError(f"{file} is no longer what was written")

    def read(
        self, start: int, count: int
    ) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Token types u1 (tokens,) or None, `task_labelled` u1 (count,) and `task_label` f4 (count, 1 or 2) of sequences."""
        first, last = int(self._starts[start]), int(self._starts[start + count])
        try:
            with safe_open(self.folder / ARRAYS, framework="numpy") as file:
                types = file.get_slice("token_types")[first:last] if self.token_types else None
                labelled, label = (
                    file.get_slice(name)[start : start + count] for name in ("task_labelled", "task_label")
                )
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self.folder / ARRAYS} cannot be read ({error}); run: pipeline cache-teacher --task {self.folder.name}"
            ) from error
        return types, labelled, label

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        lengths = TokenStore.open(self.folder).split("train").lengths
        return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def write_examples(
    folder: Path, labelled: Sequence[Row], unlabelled: Sequence[Row], head: Heads, made_of: dict[str, Any]
) -> None:
    """Write labels and token types of the rows, those with labels first, beside their token store; the record last of all."""
    names = LABELS[head]
    label = np.zeros((len(labelled) + len(unlabelled), len(names)), np.float32)
    for place, row in enumerate(labelled):
        label[place] = [row[name] for name in names]
    arrays: dict[str, npt.NDArray[Any]] = {
        "task_labelled": np.repeat(np.array([1, 0], np.uint8), [len(labelled), len(unlabelled)]),
        "task_label": label,
    }
    types = [row["token_type_ids"] for row in (*labelled, *unlabelled) if "token_type_ids" in row]
    if types:
        arrays["token_types"] = np.concatenate(types)
    save_file(arrays, folder / ARRAYS)
    write_json(
        folder / RECORD,
        {
            "made_of": made_of,
            "sha256": sha256_file(folder / ARRAYS),
            "token_types": bool(types),
            "labelled": len(labelled),
        },
    )
