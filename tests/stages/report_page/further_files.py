"""The files that a finished run may have beside those of its stages: scores on downstream tasks, speed on sentences, an ablation."""

from collections.abc import Sequence
from typing import Any

from stages.context import Artefacts, Context
from stages.finetuning.summary import publish_summary
from tests.stages.finetuning.scored import write_results
from tests.stages.finished_run import comparison, write_json

STUDENT = "03e51f2a9c01"
"""Digest of the student's weights in `finished_run`."""

TEACHER_SCORES = {
    "MRPC": {0: {"f1": 0.90, "accuracy": 0.86}, 1: {"f1": 0.91, "accuracy": 0.87}, 2: {"f1": 0.88, "accuracy": 0.84}},
    "SST-2": {0: 0.92, 1: 0.91},
    "WNLI": {0: 0.50, 1: 0.50},
    "SQuAD": {0: {"exact_match": 0.80, "f1": 0.88}},
}


def write_scores(artefacts: Artefacts, models: dict[str, float], tasks: Sequence[str] = tuple(TEACHER_SCORES)) -> None:
    """`runs/finetune`, as `pipeline finetune` leaves it, of models whose scores are so many times the teacher's."""
    for model, share in models.items():
        for task in tasks:
            seeds = TEACHER_SCORES[task]
            scaled = {
                seed: {name: value * share for name, value in score.items()}
                if isinstance(score, dict)
                else score * share
                for seed, score in seeds.items()
            }
            write_results(artefacts.finetuning, model, task, scaled, weights=STUDENT)
    publish_summary(Context(artefacts=artefacts))


def speed_on_text(**changes: Any) -> dict[str, Any]:
    """The content of `runs/speed.json`: PyTorch and ONNX Runtime in int8."""

    def engine(factor: float, **more: Any) -> dict[str, Any]:
        return {
            "bytes": round(90_000_000 * factor),
            "pass_seconds": 80.0 * factor,
            "latency_ms": 52.0 * factor,
            "latency_ms_p90": 110.0 * factor,
            "sentences_per_second": {"8": 20.0 / factor, "32": 22.0 / factor},
            **more,
        }

    def spread(median: float) -> dict[str, float]:
        return {"median": median, "low": 0.8 * median, "high": 2 * median}

    against = {
        "hidden_max_difference": 0.11,
        "logits_max_difference": 1.5,
        "hidden_cosine": 0.99482,
        "agreement": 0.9907,
    }
    against["positions"] = 2041
    ratio = {"latency": spread(2.0), "throughput": {"8": spread(2.1), "32": spread(1.9)}}
    return {
        "sentences": {"source": "dev.tsv", "count": 1500, "tokens": 47209, "longest": 87},
        "threads": 1,
        "versions": {"torch": "2.13.0"},
        "teacher": {
            "parameters": 22744506,
            "weights": "aa4e413d9ffb",
            "engines": {"torch": engine(1.0), "onnx_int8": engine(0.25, against_torch=against)},
        },
        "student": {
            "parameters": 17420346,
            "weights": STUDENT,
            "engines": {"torch": engine(0.5), "onnx_int8": engine(0.125, against_torch=against)},
        },
        "ratio": {"parameters": 0.7659, "engines": {"torch": ratio, "onnx_int8": ratio}},
        **changes,
    }


def ablation() -> dict[str, Any]:
    """The content of `runs/comparison.json` where its runs were fine-tuned."""
    content = comparison()
    scores = {
        "through the head": {"MRPC": [0.85, 0.87, 0.86], "SST-2": [0.90]},
        "top-k & the rest": {"MRPC": [0.84, 0.82, 0.83], "SST-2": [0.89]},
        "MLM only": {"MRPC": [0.80]},
    }
    for row in content["rows"]:
        if row["name"] in scores:
            row["scores"] = scores[row["name"]]
    return content


def write_further_files(artefacts: Artefacts) -> None:
    """All of them."""
    write_scores(artefacts, {"teacher": 1.0, "student": 0.96, "student-distilled": 0.98})
    write_json(artefacts.speed_on_text, speed_on_text())
    write_json(artefacts.comparison, ablation())
