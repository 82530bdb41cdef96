"""What is read from the log of a training."""

from __future__ import annotations


def seconds_of(history: list[dict[str, float]]) -> float:
    """How long the training took up to the last entry of its log, over all processes that had a part in it."""
    return next((entry["seconds"] for entry in reversed(history) if "seconds" in entry), 0.0)


def steps_of(history: list[dict[str, float]]) -> int:
    """The optimizer steps that were done."""
    return int(history[-1]["step"])
