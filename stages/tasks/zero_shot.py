"""Other tasks whose examples a fine-tuned model answers too, without having learned them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.config import FinetuneConfig
from stages.errors import ConfigError
from stages.tasks import TASKS
from stages.tasks.data import check_task, read_evaluation
from stages.tasks.task import Task

OtherTasks = dict[str, tuple[Task[Any], dict[str, Sequence[Any]]]]
"""Name -> the task, and its evaluation sets."""


def check_zero_shot(config: FinetuneConfig, name: str, project: Path) -> None:
    """Refuse tasks that ask for something else than the one called `name`, and files that are not there.

    Raises `ConfigError` and `InputError`.
    """
    task = TASKS[config.kind_of(name)]
    for other, asked in _asked(config, name).items():
        if task.labels is None or asked.labels is None or len(asked.labels) != len(task.labels) or other == name:
            raise ConfigError(
                f"finetune.tasks.{name}.zero_shot names {other}, which asks for {_answers(asked)}; expected another task with as "
                f"many classes as {task.kind}, which asks for {_answers(task)}"
            )
        check_task(config, other, asked, project, learning=False)


def read_zero_shot(config: FinetuneConfig, name: str, project: Path, message: Callable[[str], None]) -> OtherTasks:
    """What the task called `name` is asked beside. Raises `InputError`."""
    return {
        other: (asked, read_evaluation(config, other, asked, project, message))
        for other, asked in _asked(config, name).items()
    }


def _asked(config: FinetuneConfig, name: str) -> dict[str, Task[Any]]:
    return {other: TASKS[kind] for other, kind in config.zero_shot_of(name).items()}


def _answers(task: Task[Any]) -> str:
    if task.labels is not None:
        return f"one of {len(task.labels)} classes"
    return "a score" if task.head == "classification" else "places in a text"
