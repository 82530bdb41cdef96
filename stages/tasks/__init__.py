"""The downstream tasks: where their examples lie, how they become a model's input, and how its answers are scored."""

from __future__ import annotations

from typing import Any

from stages.config.finetune import TaskKind
from stages.tasks.glue import GLUE
from stages.tasks.imdb import IMDB
from stages.tasks.squad import SQUAD
from stages.tasks.task import Task

TASKS: dict[TaskKind, Task[Any]] = {**GLUE, "IMDb": IMDB, "SQuAD": SQUAD}

IN_MACRO: tuple[TaskKind, ...] = tuple(GLUE)
"""The tasks whose mean is GLUE's macro score; the same without WNLI is what many report beside it."""
