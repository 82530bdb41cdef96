"""The files that a finished run leaves, with figures chosen by hand: what the stage `report` reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from stages.config import load_config, to_plain
from stages.context import Artefacts
from tests.tiny import tiny_params

DIGEST, FINGERPRINT, RUN = "c0" * 32, "f1" * 32, "4a" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"

HELD_OUT = {
    "kl_masked": 0.17496,
    "kl_all": 0.07834,
    "agreement_masked": 0.71193,
    "agreement_all": 0.92815,
    "mlm_loss": 3.73846,
    "masked_accuracy": 0.34341,
    "hidden_cosine": 0.93587,
    "teacher_mlm_loss": 3.70155,
    "teacher_masked_accuracy": 0.35071,
    "positions": 31093,
    "masked_tokens": 4662,
}


def write_finished_run(folder: Path, **overrides: Any) -> Artefacts:
    """All files but `runs/comparison.json`, for the tiny parameters with `overrides` merged in."""
    artefacts = Artefacts(project=folder)
    for path, value in _json_files(overrides).items():
        write_json(folder / path, value)
    for path, rows in _csv_files().items():
        write_rows(folder / path, rows)
    return artefacts


def write_json(file: Path, value: Any) -> None:
    """Write JSON, making the folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def read_json(file: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(file.read_text(encoding="utf-8"))


def change(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    write_json(file, {**read_json(file), **values})


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV with a header; the first row has all columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def comparison(**changes: Any) -> dict[str, Any]:
    """The content of `runs/comparison.json`: teacher, untrained student, and three trained ones of two seeds."""

    def row(name: str, trained: bool, scale: float) -> dict[str, Any]:
        figures = {"kl_masked": 0.2 * scale, "agreement_masked": 0.7 / scale, "mlm_loss": 3.8, "kl_all": 0.1 * scale}
        return {
            "name": name,
            "trained": trained,
            "steps": 300 if trained else 0,
            "seconds": [80.0, 90.0] if trained else [0.0],
            "values": {key: [value, 1.1 * value] if trained else [value] for key, value in figures.items()},
        }

    teacher = {
        "name": "teacher",
        "trained": False,
        "steps": 0,
        "seconds": [0.0],
        "values": {"kl_masked": [0.0], "agreement_masked": [1.0]},
    }
    rows = [
        teacher,
        row("student before training", False, 20),
        row("through the head", True, 1),
        row("top-k & the rest", True, 1.2),
        row("MLM only", True, 4),
    ]
    return {
        "split": "test",
        "masked_tokens": 4662,
        "seeds": [0, 1],
        "train": to_plain(load_config(tiny_params()).train),
        "student": to_plain(load_config(tiny_params()).student),
        "cache_root_digest": DIGEST,
        "rows": rows,
        **changes,
    }


def _json_files(overrides: dict[str, Any]) -> dict[str, Any]:
    def model(parameters: int, latency: float, throughput: float) -> dict[str, Any]:
        speed = {"latency_ms": latency, "sequences_per_second": throughput}
        return {"parameters": parameters, "bytes": 4 * parameters, "cpu": speed}

    return {
        "models/student/config.json": {},
        "runs/teacher.json": {"parameters": 4295424, "mlm_loss": 3.69677, "steps": 2000, "source": "train"},
        "cache/run.json": {
            "bytes": 224760522,
            "bytes_per_train_position": 319.6,
            "retained_mass": {"1.0": 0.8391, "2.0": 0.2658},
            "shards_computed": 40,
            "seconds": 52.2,
        },
        "cache/figures.json": {
            "fingerprint": FINGERPRINT,
            "root_digest": DIGEST,
            "positions": {"test": 31093, "train": 593573, "validation": 15567},
            "bytes_per_position": {"hidden": 226.4, "top_ids": 58.9, "stat": 34.2, "masked": 0.1},
            "masked": {
                "positions": 178072,
                "entropy": {"1.0": 3.842, "2.0": 7.713},
                "retained_mass": {"1.0": 0.6214, "2.0": 0.1832},
            },
            "unmasked": {
                "positions": 415501,
                "entropy": {"1.0": 0.7312, "2.0": 5.921},
                "retained_mass": {"1.0": 0.9274, "2.0": 0.2994},
            },
        },
        "runs/speed-half.json": {
            "teacher": model(4295424, 6.71, 219.8),
            "student": model(2715392, 3.62, 402.1),
            "ratio": {"parameters": 0.6322, "bytes": 0.6322, "cpu": {"latency": 0.5395, "throughput": 1.829}},
            "sequence_tokens": 16,
            "batch_size": 8,
            "threads": 1,
            "rounds": 5,
        },
        "runs/provenance.json": {
            "commit": COMMIT,
            "packages": {"python": "3.11.9", "torch": "2.13.0"},
            "run_fingerprint": RUN,
            "cache": {"fingerprint": FINGERPRINT, "root_digest": DIGEST},
            "parameters": to_plain(load_config(tiny_params(**overrides))),
        },
        "runs/train.json": {
            "student": "half",
            "parameters": 2715392,
            "steps": 500,
            "kept_step": 500,
            "epochs": 1.67,
            "precision": "float32",
            "last": {"loss": 8.1, "kd": 0.04, "mlm": 3.6, "cos": 0.06},
            "validation": {**HELD_OUT, "kl_masked": 0.18111, "masked_tokens": 2331, "positions": 15567},
            "cache_root_digest": DIGEST,
            "weights": "03e51f2a9c01",
            "seconds": 87.8,
        },
        "runs/evaluation.json": {
            "split": "test",
            **HELD_OUT,
            "weights": "03e51f2a9c01",
            "parameters": 2715392,
            "bytes": 10866272,
        },
    }


def _csv_files() -> dict[str, list[dict[str, Any]]]:
    steps = range(10, 60, 10)
    student = [
        {
            "step": step,
            "loss": 100 / step,
            "kd": 3 / step,
            "mlm": 3 + 10 / step,
            "cos": 1 / step,
            "learning_rate": 0.001 * (1 - step / 50),
            "grad_norm": 1.0,
        }
        for step in steps
    ]
    held_out = [
        {"step": step, "kl_masked": 4 / step, "kl_all": 2 / step, "agreement_masked": 0.7, "agreement_all": 0.9}
        | {"mlm_loss": 3 + 12 / step, "masked_accuracy": 0.3, "hidden_cosine": 0.9}
        for step in (20, 40, 50)
    ]
    bins = {
        (figure, temperature, positions): [0.1, 0.2, 0.7] if positions == "masked" else [0.6, 0.3, 0.1]
        for figure in ("entropy", "retained_mass")
        for temperature in ("1.0", "2.0")
        for positions in ("masked", "unmasked")
    }
    return {
        "runs/train.csv": student,
        "runs/validation.csv": held_out,
        "runs/teacher.csv": [{"step": step, "loss": 7 - step / 20, "learning_rate": 0.002} for step in steps],
        "cache/distributions.csv": [
            {"figure": f, "temperature": t, "positions": p, "low": i / 3, "high": (i + 1) / 3, "share": share}
            for (f, t, p), shares in bins.items()
            for i, share in enumerate(shares)
        ],
    }
