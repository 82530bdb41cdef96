"""Which examples a step of fine-tuning sees, and how they become tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.config import TaskTraining
from stages.randomness import permutation
from stages.tasks.task import Row

CLASS_LOGITS, TOKEN_LOGITS, HIDDEN, LABELLED = "class_logits", "token_logits", "teacher_hidden", "labelled"
"""What a row of a task's cache has beside what is encoded from the data (`stages.finetuning.cached`)."""
SORTED_BATCHES = 50
"""So many batches are filled from as many random examples, which are sorted by length first."""


def training_batches(lengths: npt.NDArray[np.int64], training: TaskTraining, seed: int) -> list[npt.NDArray[np.int64]]:
    """The rows of every step, i8 (batch,): a pure function of the lengths (rows,), the parameters and the seed.

    All rows come once per epoch, in another order in each; an epoch's last batch may be smaller. So going on from a step
    costs nothing, and is exact.
    """
    batches: list[npt.NDArray[np.int64]] = []
    for epoch in range(training.epochs):
        order = permutation(f"finetune/{seed}", epoch, len(lengths))
        of_epoch: list[npt.NDArray[np.int64]] = []
        at_once = training.batch_size * (SORTED_BATCHES if training.group_by_length else 1)
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            if training.group_by_length:
                some = some[np.argsort(lengths[some], kind="stable")]
            of_epoch += [
                some[place : place + training.batch_size] for place in range(0, len(some), training.batch_size)
            ]
        if training.group_by_length:
            of_epoch = [of_epoch[place] for place in permutation(f"finetune/{seed}/batches", epoch, len(of_epoch))]
        batches += of_epoch
    return batches[: training.max_steps]


@dataclass(frozen=True)
class Padded:
    """Rows to a batch, padded on the right."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and, where the rows have them, `token_type_ids` i8 (S, L); what is to be learned (S,).

        Of cached rows also the teacher's answers f4: `class_logits` (S, C), `token_logits` (S, L, 2), `teacher_hidden` (S, L, H).
        """
        lengths = np.array([len(row["input_ids"]) for row in rows])
        real = np.arange(lengths.max()) < lengths[:, None]
        batch: dict[str, npt.NDArray[Any]] = {"attention_mask": real.astype(np.int64)}
        for name, first in rows[0].items():
            values = [row[name] for row in rows]
            if first.ndim == 0 or name == CLASS_LOGITS:
                batch[name] = np.stack(values)
                continue
            kind = np.float32 if first.dtype.kind == "f" else np.int64
            batch[name] = np.full((*real.shape, *first.shape[1:]), self.pad_id if name == "input_ids" else 0, kind)
            batch[name][real] = np.concatenate(values)
        return {name: torch.from_numpy(array) for name, array in batch.items()}
