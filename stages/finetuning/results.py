"""Results of fine-tuning: one JSON file for each model, task and seed, and which fine-tuned models stay."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from stages.errors import InputError
from stages.outputs import write_json
from storage.files import discard
from storage.identity import differing_fields

VERSION = 1
"""Raised by hand when a change of code changes what the same parameters give: results from before are done anew then."""

MODEL = "model.json"


def result_file(folder: Path, task: str, seed: int) -> Path:
    """Where the result of a seed lies in the folder of a model."""
    return folder / task / f"{seed}.json"


def finished(file: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in `file` where it is one of this identity (parameters, weights, data); else None."""
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("identity") == dict(identity) else None


def chosen_by(result: Mapping[str, Any]) -> float:
    """The score that tells which seed is the best: of the validation where there is one, so that none is chosen on the evaluation."""
    score: float = result.get("validation", result)["score"]
    return score


def scores_like(folder: Path, task: str, identity: Mapping[str, Any]) -> dict[int, float]:
    """Seed -> the score to choose by, of the results that a model has on a task, of this identity but for the seed."""
    results = _results(folder / task)
    return {
        result["seed"]: chosen_by(result)
        for result in results
        if result["identity"] == {**identity, "seed": result["seed"]}
    }


def other_results(folder: Path, task: str, identity: Mapping[str, Any]) -> dict[Path, tuple[str, ...]]:
    """The results that a model has on a task and that are not of this identity, in what is said of it, and what differs."""
    expected = {name: value for name, value in identity.items() if name != "seed"}
    differences = {}
    for file in sorted((folder / task).glob("*.json")):
        found = {name: value for name, value in _read(file)["identity"].items() if name in {*expected, "distillation"}}
        if differing := differing_fields(expected, found, found_in="in that result"):
            differences[file] = differing
    return differences


def results_of(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What a model is, and its results by task, in the order of seeds; those of other weights than it has now are left out."""
    model = _read(folder / MODEL)
    tasks = {}
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        results = [result for result in _results(task) if result["identity"]["weights"] == model["weights"]]
        if results:
            tasks[task.name] = sorted(results, key=lambda result: int(result["seed"]))
    return model, tasks


def models_in(folder: Path) -> list[Path]:
    """The folders of the models that were fine-tuned, the teacher's first."""
    found = [path for path in folder.iterdir() if (path / MODEL).is_file()]
    return sorted(found, key=lambda path: (path.name != "teacher", path.name))


def write_model(folder: Path, model: Mapping[str, Any]) -> None:
    """Say what the results in `folder` are of."""
    write_json(folder / MODEL, model)


Keep = Literal["none", "best", "all"]


def kept_seeds(keep: Keep, scores: Mapping[int, float]) -> set[int]:
    """The seeds whose fine-tuned models stay; of equal ones, the lowest is the best."""
    if keep == "best" and scores:
        return {min(scores, key=lambda seed: (-scores[seed], seed))}
    return set(scores) if keep == "all" else set()


def remove_others(folder: Path, kept: set[int]) -> None:
    """Remove the fine-tuned models of other seeds from a task's folder."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if path.name.isdecimal() and int(path.name) not in kept:
            discard(path)


def _results(folder: Path) -> Iterator[dict[str, Any]]:
    yield from (_read(file) for file in folder.glob("*.json"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); remove it and run: pipeline finetune") from error
    return content
