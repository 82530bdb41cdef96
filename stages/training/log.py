"""The log of a training: what is in it, and what is read from it."""

from __future__ import annotations

import math

from stages.errors import StageError
from stages.training.distiller import PARTS
from stages.training.processes import Processes

LOSSES = ("loss", *PARTS)


def refuse_not_finite(loss: float, step: int, processes: Processes) -> None:
    """Raise `StageError` for a loss that is not finite."""
    if not math.isfinite(loss):
        raise processes.same(
            StageError(
                f"the loss is {loss} at step {step}; expected a finite number; lower train.learning_rate or "
                "raise train.warmup_steps, or set train.precision to float32"
            )
        )


def seconds_of(history: list[dict[str, float]]) -> float:
    """How long the training took up to the last entry of its log, over all processes that had a part in it."""
    return next((entry["seconds"] for entry in reversed(history) if "seconds" in entry), 0.0)


def data_wait_of(history: list[dict[str, float]]) -> float:
    """The share of that time in which a process waited for its next batch."""
    waited = before = 0.0
    for entry in history:
        if "data_wait" in entry:
            waited += entry["data_wait"] * (entry["seconds"] - before)
            before = entry["seconds"]
    return waited / max(before, 1e-9)


def steps_of(history: list[dict[str, float]]) -> int:
    """The optimizer steps that were done."""
    return int(history[-1]["step"])
