"""Results of fine-tuning, written by hand."""

from stages.finetuning.results import result_file, write_model
from stages.outputs import write_json


def write_results(folder, model, task, scores, *, kind=None, data="d", weights="w", beside=None, **identity):
    """`scores`: seed -> score, or official figures of which the score is the mean. `beside`: seed -> what else it has."""
    write_model(folder / model, {"path": f"models/{model}", "weights": weights, "kind": "bert"})
    for seed, score in scores.items():
        figures = score if isinstance(score, dict) else {"accuracy": score}
        write_json(
            result_file(folder / model, task, seed),
            {
                "model": model,
                "task": task,
                "kind": kind or task,
                "seed": seed,
                "score": sum(figures.values()) / len(figures),
                "figures": figures,
                "examples": {"train": 10, "evaluation": 5},
                "seconds": 1.0,
                **(beside or {}).get(seed, {}),
                "parameters": 1000,
                "identity": {"seed": seed, "weights": weights, "data": {"train": "t", "evaluation": data}, **identity},
            },
        )
