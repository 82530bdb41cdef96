"""The scores of `pipeline finetune` for the models of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from stages.finetuning.results import models_in, results_of
from stages.finetuning.summary import TaskScores

Scores = Mapping[str, TaskScores]
"""By task."""


def scores_of(finetuning: Path, model: str, weights: str | None) -> tuple[dict[str, Scores], list[str]]:
    """What the model at the path `model` (`models/student`, as its project has it) achieved, by the name that its results have.

    The name that `finetune` gives by itself comes first. Results of other weights than those whose digest begins with `weights`
    (None: of any) are left out: the second value names them. Raises `InputError` for results that cannot be read.
    """
    found, left_out = dict[str, Scores](), list[str]()
    for folder in models_in(finetuning) if finetuning.is_dir() else []:
        described, tasks = results_of(folder)
        if described["path"] != model or not tasks:
            continue
        if weights is None or described["weights"].startswith(weights):
            found[folder.name] = {task: TaskScores.of(results) for task, results in tasks.items()}
        else:
            left_out.append(folder.name)
    own = name_of(model)
    return dict(sorted(found.items(), key=lambda item: item[0] != own)), left_out


def name_of(model: str) -> str:
    """What `finetune` calls the results of a model of the project: `comparison-full-0` for `models/comparison/full/0`."""
    return "-".join(PurePosixPath(model).parts[1:])


def examples_of(scores: Iterable[TaskScores]) -> str:
    """Digest of the examples that models were scored on; where they are not the same for all, of each."""
    return "+".join(dict.fromkeys(of_model.data for of_model in scores))


def same_examples(
    name: str, ours: Mapping[str, str], base: str, theirs: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The tasks on which `name` and `base` were scored on the same examples, so that scores may be subtracted; a line for each other.

    `ours` and `theirs`: task -> `examples_of`.
    """
    shared = [task for task in theirs if task in ours]
    same = [task for task in shared if ours[task] == theirs[task]]
    return same, [
        f"{name} and {base} were scored on different examples of {task}" for task in shared if task not in same
    ]
