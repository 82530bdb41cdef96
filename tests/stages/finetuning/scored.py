"""Results of fine-tuning, written by hand."""

from stages.finetuning.results import result_file, write_model
from stages.outputs import write_json
from stages.tasks import TASKS


def write_results(folder, model, task, scores, *, kind=None, data="d", weights="w", beside=None, **identity):
    """`scores`: seed -> score, or official figures; what the task is scored by gives the score, else all of them.

    `beside`: seed -> what else it has.
    """
    write_model(folder / model, {"path": f"models/{model}", "weights": weights, "kind": "bert"})
    for seed, score in scores.items():
        figures = score if isinstance(score, dict) else {"accuracy": score}
        task_of_kind = TASKS.get(kind or task)
        scored_by = [name for name in figures if task_of_kind and name in task_of_kind.scored_by] or list(figures)
        write_json(
            result_file(folder / model, task, seed),
            {
                "model": model,
                "task": task,
                "kind": kind or task,
                "seed": seed,
                "score": sum(figures[name] for name in scored_by) / len(scored_by),
                "figures": figures,
                "examples": {"train": 10, "evaluation": 5},
                "seconds": 1.0,
                **(beside or {}).get(seed, {}),
                "parameters": 1000,
                "identity": {"seed": seed, "weights": weights, "data": {"train": "t", "evaluation": data}, **identity},
            },
        )
