"""Runs as the stages leave them, with figures chosen by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages.config import load_config, to_plain
from tests.stages.finished_run import DIGEST, HELD_OUT, write_json
from tests.tiny import tiny_params


def write_run(
    folder: Path, *, seed: int = 0, weights: str = "w0", evaluation=None, training=None, **parameters: Any
) -> None:
    """`train.json`, `evaluation.json` and `provenance.json` of a run with these parameters."""
    values = tiny_params(**parameters)
    values["train"]["seed"] = seed
    write_json(
        folder / "train.json",
        {
            "student": values["train"]["student"],
            "parameters": 1000,
            "steps": 8,
            "seconds": 12.0 + seed,
            "precision": "float32",
            "cache_root_digest": DIGEST,
            "weights": weights,
            **(training or {}),
        },
    )
    figures = {**HELD_OUT, "split": "test", "parameters": 1000, "bytes": 4000, "weights": weights, **(evaluation or {})}
    write_json(folder / "evaluation.json", figures)
    write_json(folder / "provenance.json", {"parameters": to_plain(load_config(values))})


def write_cache_figures(project: Path, **changes: Any) -> None:
    """What `cache-teacher` says of the cache."""
    write_json(project / "cache" / "run.json", {"bytes": 224760522, "bytes_per_train_position": 319.6, "seconds": 52.2})
    write_json(project / "cache" / "figures.json", {"root_digest": DIGEST, **changes})
