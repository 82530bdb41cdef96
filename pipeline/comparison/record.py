"""All that is known of one run, as JSON: from the files that the stages left in its project, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from pipeline.comparison.finished import Finished, read_json
from pipeline.comparison.places import Place
from pipeline.comparison.scores import examples_of, name_of, scores_of
from pipeline.comparison.table import Row
from stages.errors import InputError
from stages.figures import LABELS, PREDICTION, Objective
from stages.finetuning.summary import means_of
from storage.identity import leaves

SECTIONS = ("train", "corpus", "tokenize", "masking", "teacher", "teachers", "cache")
"""Of the parameters of a run, what makes its student; beside them its entry in `students`."""
YARDSTICK = ("split", "positions", "masked_tokens", "predicted_tokens")
TEACHER_LOSS_DIFFERS = 1e-3
"""Nats; the same teacher on the same held-out tokens, from caches in different codings, is closer."""


def record_of(place: Place) -> dict[str, Any]:
    """The run at `place`.

    `held_out`, `scores`, `size`, `speed`, `training` and `cache` are there where their files are, and of the weights that the student
    has now; `notes` says what was left out. Figures of several seeds are lists. Raises `InputError` for files that cannot be read.
    """
    runs = [Finished(folder=folder) for folder in place.folders]
    notes: list[str] = []
    evaluations = [run.evaluation for run in runs] if runs else [_an_evaluation(place)]
    notes += [
        f"{place.name}: evaluation.json in {run.folder} is of another student than train.json; run: pipeline evaluate"
        for run in runs
        if run.training and not run.evaluation and read_json(run.folder / "evaluation.json")
    ]
    record: dict[str, Any] = {
        "name": place.name,
        "from": [str(folder) for folder in place.folders] or [str(place.artefacts.teacher)],
        "seeds": [run.parameters["train"]["seed"] for run in runs if run.parameters],
    }
    if all(evaluations):
        record["held_out"] = _held_out(evaluations, place)
    scores, of_others = _scores(place, runs)
    notes += of_others
    if scores:
        record["scores"] = scores
    record |= _teacher(place) if place.is_teacher else _student(place, runs, notes)
    return {**record, "notes": notes}


def _an_evaluation(place: Place) -> Mapping[str, Any]:
    """Any evaluation in the project: it has the teacher's figures too."""
    runs = place.artefacts.runs
    files = [runs / "evaluation.json", *sorted((runs / "comparison").glob("**/evaluation.json"))]
    return next((found for file in files if (found := read_json(file))), {})


def _held_out(evaluations: Sequence[Mapping[str, Any]], place: Place) -> dict[str, Any]:
    first = evaluations[0]
    objective: Objective = "causal" if PREDICTION["causal"][0] in first else "masked"
    if place.is_teacher:
        values: Mapping[str, Sequence[float]] = Row.teacher(first, objective).values
    else:
        values = {
            name: [found[name] for found in evaluations] for name in LABELS if all(name in e for e in evaluations)
        }
    loss = f"teacher_{PREDICTION[objective][0]}"
    return {
        "on": {name: first[name] for name in (*YARDSTICK, loss) if name in first},
        "values": {name: list(found) for name, found in values.items()},
    }


def _scores(place: Place, runs: Sequence[Finished]) -> tuple[dict[str, Any], list[str]]:
    """Name of the results -> tasks and means, of the students of all seeds; and what to say of results that are left out."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    notes = []
    weights = [run.weights for run in runs] or [None]
    for model, digest in zip(place.models, weights, strict=True):
        found, left_out = scores_of(place.artefacts.finetuning, model, digest)
        for name, achieved in found.items():
            shown = place.name if name == name_of(model) else f"{place.name}, {name}"
            by_name.setdefault(shown, []).append(achieved)
        notes += [
            f"{place.name}: the scores of {name} are of weights that it no longer has; run: pipeline finetune --replace --model {model}"
            for name in left_out
        ]
    result = {}
    for name, models in by_name.items():
        tasks = {
            task: {
                "scores": [of_model[task].score for of_model in models if task in of_model],
                "seeds": [len(of_model[task].seeds) for of_model in models if task in of_model],
                "evaluation_digest": examples_of(of_model[task] for of_model in models if task in of_model),
            }
            for task in dict.fromkeys(task for of_model in models for task in of_model)
        }
        result[name] = {
            "tasks": tasks,
            "means": means_of({task: mean(of_task["scores"]) for task, of_task in tasks.items()}),
        }
    return result, notes


def _teacher(place: Place) -> dict[str, Any]:
    """Size, speed and training time of the teacher."""
    artefacts = place.artefacts
    figures, record = read_json(artefacts.teacher_figures), dict[str, Any]()
    speed = next((found for file in sorted(artefacts.runs.glob("speed-*.json")) if (found := read_json(file))), {})
    if "parameters" in figures:
        record["size"] = {"parameters": figures["parameters"], "bytes": figures.get("bytes")}
    record |= _speed(speed, read_json(artefacts.speed_on_text), "teacher")
    if "seconds" in figures:
        record["training"] = {"seconds": [figures["seconds"]], "steps": figures.get("steps")}
    if not record and not _an_evaluation(place):
        raise InputError(
            f"nothing is known of the teacher of {artefacts.project}: runs/teacher.json is missing; run: pipeline teacher"
        )
    return record


def _student(place: Place, runs: Sequence[Finished], notes: list[str]) -> dict[str, Any]:
    """Size, speed, training, cache and parameters of a student."""
    artefacts, first = place.artefacts, runs[0]
    record: dict[str, Any] = {}
    if "parameters" in {**first.training, **first.evaluation}:
        sizes = {**first.training, **first.evaluation}
        record["size"] = {"parameters": sizes["parameters"], "bytes": sizes.get("bytes")}
    on_text = read_json(first.folder / "speed.json")
    if on_text and on_text["student"]["weights"] != first.weights:
        notes.append(f"{place.name}: speed.json is of other weights than it has now; run: pipeline evaluate --speed")
        on_text = {}
    student = _student_name(first)
    if speed := _speed({} if student is None else read_json(artefacts.speed(student)), on_text, "student"):
        record |= speed
    trained = [run.training for run in runs if run.training]
    if trained:
        record["training"] = {
            "seconds": [training["seconds"] for training in trained],
            "steps": trained[0]["steps"],
            "precision": trained[0].get("precision"),
        }
        record["cache"] = _cache(place, trained[0]["cache_root_digest"])
        others = {training["cache_root_digest"][:12] for training in trained}
        if len(others) > 1:
            notes.append(f"{place.name}: its seeds were trained from different caches: {', '.join(sorted(others))}")
    if first.parameters:
        record["parameters"] = parameters_of(first)
    return record


def _student_name(run: Finished) -> str | None:
    """In `students`: that of a comparison's random weights is called after its seed, and is of the same shape."""
    name: str | None = run.training.get("student")
    return None if name is None else name.removesuffix(f"-seed-{run.parameters.get('train', {}).get('seed')}")


def _speed(shape: Mapping[str, Any], on_text: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Of `runs/speed-NAME.json`, on random ids, and of `runs/speed.json`, on sentences."""
    found: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        if device in shape.get(who, {}):
            found[device] = {**shape[who][device], "tokens": shape["sequence_tokens"]}
    for engine, figures in on_text.get(who, {}).get("engines", {}).items():
        found.setdefault("sentences", {})[engine] = {
            name: figures[name] for name in ("latency_ms", "pass_seconds", "sentences_per_second") if name in figures
        }
    return {"speed": found} if found else {}


def _cache(place: Place, root_digest: str) -> dict[str, Any]:
    """What the cache costs, where the one that the project has now is the one that the run was trained from."""
    run, figures = read_json(place.artefacts.cache_run), read_json(place.artefacts.cache_figures)
    known = run and figures.get("root_digest") == root_digest
    costs = {name: run[name] for name in ("bytes", "bytes_per_train_position", "seconds")} if known else {}
    return {"root_digest": root_digest, **costs}


def parameters_of(run: Finished) -> dict[str, Any]:
    """Dotted key -> value of all that makes the student; the seed of the training stands elsewhere."""
    found = {name: run.parameters[name] for name in SECTIONS if run.parameters.get(name) is not None}
    student = run.parameters["train"]["student"]
    of_run = dict(leaves({**found, "student": run.parameters["students"][student]}))
    of_run.pop("train.seed")
    return of_run


def same_yardstick(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether held-out figures of two runs are of the same teacher on the same tokens, as far as the figures tell."""
    if any(one.get(name) != other.get(name) for name in YARDSTICK):
        return False
    losses = [next((value for name, value in of.items() if name.startswith("teacher_")), None) for of in (one, other)]
    return None not in losses and abs(losses[0] - losses[1]) <= TEACHER_LOSS_DIFFERS  # type: ignore[operator]
