"""Which fine-tuned model is a task's teacher."""

from __future__ import annotations

import json
from dataclasses import replace

from stages.context import Artefacts, Context
from stages.errors import InputError
from stages.finetuning.results import chosen_by

TEACHER = "teacher"
"""Of which model's results it is the best one."""


def with_teacher(context: Context) -> Context:
    """The context whose `artefacts.teacher` is the fine-tuned teacher of its task: the only one kept, or that with the best score.

    Raises `InputError`, naming the command that makes one, where there is none.
    """
    artefacts = context.artefacts
    folder = artefacts.teacher if artefacts.task_seed is None else artefacts.teacher.parent
    seeds = sorted(int(path.parent.name) for path in folder.glob("*/config.json") if path.parent.name.isdecimal())
    if not seeds:
        raise InputError(
            f"{folder} holds no fine-tuned teacher; expected the one that finetune.keep: best or all leaves there; run: "
            f"{artefacts.teacher_command}"
        )
    if len(seeds) > 1:
        scores = {seed: _score(artefacts, seed) for seed in seeds}
        seeds.sort(key=lambda seed: (-scores[seed], seed))
    return replace(context, artefacts=replace(artefacts, task_seed=seeds[0]))


def _score(artefacts: Artefacts, seed: int) -> float:
    assert artefacts.task is not None
    file = artefacts.finetuning / TEACHER / artefacts.task / f"{seed}.json"
    try:
        return chosen_by(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} cannot be read ({error!r}), and models of several seeds are kept: which is the best is not known; run: "
            f"{artefacts.teacher_command}"
        ) from None
