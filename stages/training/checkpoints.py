"""Checkpoints of a training run: `checkpoint-N` folders, whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_weights(student: PreTrainedModel, folder: Path) -> None:
    """Load `model.safetensors` of a checkpoint into a student. Raises `InputError` where tensors are missing or unknown.

    Tied weights are stored once, under one of their names.
    """
    try:
        loaded = load_file(folder / "model.safetensors")
        result = student.load_state_dict(loaded, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded ({error}); remove that folder and run again") from error
    state = student.state_dict()
    filled = {state[name].data_ptr() for name in loaded if name in state}
    missing = [name for name in result.missing_keys if state[name].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{folder} is no checkpoint of this student: missing {missing}, unknown {result.unexpected_keys}; "
            "remove that folder and run again"
        )


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps done at `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def checkpoint_of(folder: Path, step: int) -> Path:
    """The checkpoint of a step among those of a run. Raises `InputError` where it is not there."""
    checkpoint = folder / f"checkpoint-{step}"
    if not checkpoint.is_dir():
        raise InputError(
            f"{checkpoint} is missing: the best weights of a run that is over; bring it back, or remove {folder} to train anew"
        )
    return checkpoint


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None. Drafts of a killed process do not count."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=checkpoint_step, default=None)


def log_of(checkpoint: Path) -> list[dict[str, float]]:
    """What the run has logged up to a checkpoint."""
    state: dict[str, Any] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    log: list[dict[str, float]] = state["log_history"]
    return log


def keep_latest(folder: Path, count: int, *, besides: int | None = None) -> None:
    """Remove all but the `count` checkpoints with the highest steps, and the one of step `besides`."""
    found = sorted(folder.glob("checkpoint-*"), key=checkpoint_step)
    for old in found[:-count]:
        if checkpoint_step(old) != besides:
            shutil.rmtree(old)
