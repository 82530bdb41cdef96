"""Which fine-tuned model is a task's teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages.config import TaskConfig
from stages.context import Artefacts, Context
from stages.errors import InputError
from stages.finetuning.results import chosen_by, result_file
from stages.models import DIGEST_SHOWN, weights_digest
from storage import CacheDescription

TEACHER = "teacher"
"""Of which model's results it is the best one."""
_SCORED = ("evaluation", "validation")
"""Parts of a task's examples that nothing may be learned from."""


def with_teacher(context: Context) -> Context:
    """The context whose `artefacts.teacher` is the fine-tuned teacher of its task: the only one kept, or that with the best score.

    Raises `InputError`, naming the command that makes one, where there is none.
    """
    artefacts = context.artefacts
    folder = artefacts.teacher if artefacts.task_seed is None else artefacts.teacher.parent
    seeds = _seeds(folder)
    if not seeds:
        raise InputError(
            f"{folder} holds no fine-tuned teacher; expected the one that finetune.keep: best or all leaves there; run: "
            f"{artefacts.teacher_command}"
        )
    if len(seeds) > 1:
        scores = {seed: _score(artefacts, seed) for seed in seeds}
        seeds.sort(key=lambda seed: (-scores[seed], seed))
    return replace(context, artefacts=replace(artefacts, task_seed=seeds[0]))


def with_teacher_of(description: CacheDescription, context: Context) -> Context:
    """The same for a cache that is there: its very teacher, whichever seed that is. Raises `InputError` where it is not among those."""
    assert description.task is not None
    artefacts = replace(context.artefacts, task=description.task["name"], task_seed=None)
    expected = description.content["teacher"]
    for seed in _seeds(artefacts.teacher):
        if weights_digest(artefacts.teacher / str(seed)) == expected:
            return replace(context, artefacts=replace(artefacts, task_seed=seed))
    raise InputError(
        f"{artefacts.teacher} does not hold the fine-tuned teacher of this cache, whose content.teacher is {expected[:12]}...; fetch it "
        "with `dvc pull`, or `git checkout` the cache's commit first"
    )


def require_unseen(digests: Mapping[str, str], settings: TaskConfig, context: Context) -> None:
    """Refuse a fine-tuned teacher that may have learned what is scored: its cached answers would carry that to the student.

    `digests` are those of the examples as the parameters have them now (`TaskData.digests`); what the teacher learned from is in its
    result. Where both had the same training examples, or kept the same ones out to be scored, it has not. Otherwise
    it may have where the scored ones are taken from the training's (`held_out`, `validation`), which raises `InputError`. Where they
    are files of their own it is said and goes on: nothing wrong has to have happened. So it does where there is no result.
    """
    artefacts = context.artefacts
    held_out = settings.held_out is not None or settings.validation is not None
    file = _result(artefacts, artefacts.task_seed)
    found = _examples_of(file)
    if "train" not in found:
        if held_out:
            context.progress.message(
                f"{artefacts.shown(file)} does not say which examples the fine-tuned teacher of {artefacts.task} learned from: whether "
                f"it has seen those that are scored is not known; to be sure, run: {artefacts.teacher_command} --replace"
            )
        return
    scored = [{part: digest for part, digest in some.items() if part in _SCORED} for some in (found, digests)]
    if found["train"] == digests["train"] or scored[0] == scored[1]:
        return
    differ = (
        f"the fine-tuned teacher in {artefacts.shown(artefacts.teacher)} learned from other examples ({found['train'][:DIGEST_SHOWN]}) "
        f"than those that are cached ({digests['train'][:DIGEST_SHOWN]})"
    )
    if not held_out:
        context.progress.message(differ)
        return
    raise InputError(
        f"{differ}, and finetune.tasks.{artefacts.task} takes those that are scored from the same files (held_out, validation): it may "
        f"have learned them, and the student would from it; run: {artefacts.teacher_command} --replace"
    )


def _seeds(folder: Path) -> list[int]:
    """Of which there are models, ascending."""
    return sorted(int(path.parent.name) for path in folder.glob("*/config.json") if path.parent.name.isdecimal())


def _result(artefacts: Artefacts, seed: int | None) -> Path:
    """That of the fine-tuned teacher of a seed."""
    assert artefacts.task is not None
    assert seed is not None
    return result_file(artefacts.finetuning / TEACHER, artefacts.task, seed)


def _examples_of(file: Path) -> dict[str, str]:
    """Digests of the examples of a result; none where it does not say."""
    try:
        found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["identity"]["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found


def _score(artefacts: Artefacts, seed: int) -> float:
    file = _result(artefacts, seed)
    try:
        return chosen_by(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} cannot be read ({error!r}), and models of several seeds are kept: which is the best is not known; run: "
            f"{artefacts.teacher_command}"
        ) from None
