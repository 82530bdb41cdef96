"""What a model learns a task from: the task's own examples, or its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import InputError
from stages.finetuning.cached import CachedTask
from stages.finetuning.distillation import DistillationLoss
from stages.task_models import BaseModel
from stages.tasks.task import Row, Task


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Inputs, and the loss on them."""

    rows: Sequence[Row]
    lengths: npt.NDArray[np.int64]
    """Tokens of each input."""
    counts: dict[str, int]
    """Of a cache: inputs with a label (`train`), and without."""
    loss: DistillationLoss | None = None
    """None: the model's own."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Learned:
        """The task's own examples."""
        return cls(rows=rows, lengths=np.array([len(row["input_ids"]) for row in rows]), counts={})

    @classmethod
    def of_cache(
        cls, cached: CachedTask, name: str, task: Task[Any], base: BaseModel, read: Callable[[], None]
    ) -> Learned:
        """Those of the cache of the task `name`, for a student that is `base`. Its shards are read, and checked.

        `read` is called after each, and may raise.

        Raises `InputError` where the student has too few positions, `storage.CorruptError` for a damaged shard.
        """
        rows = cached.rows(read)
        longest = int(rows.lengths.max())
        if base.positions is not None and longest > base.positions:
            raise InputError(
                f"an input in the cache of {name} has {longest} tokens, and the model in {base.folder} {base.positions} positions; "
                f"set finetune.tasks.{name}.training.max_tokens to at most that and run: pipeline cache-teacher --task {name}"
            )
        return cls(
            rows=rows,
            lengths=rows.lengths,
            counts={"train": rows.labelled, "unlabelled": len(rows) - rows.labelled},
            loss=DistillationLoss(
                config=cached.distillation,
                head=task.head,
                scores=task.head == "classification" and task.labels is None,
                token_types=base.token_types,
            ),
        )
