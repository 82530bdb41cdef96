"""What must hold of a downstream task's labels and logits before they are stored (FORMAT.md, section 10)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from storage.layout import Layout

if TYPE_CHECKING:
    from storage.targets import ShardTargets


def task_shapes(layout: Layout, sequences: int, tokens: int) -> dict[str, tuple[int, int] | None]:
    """Shapes of `task_label` and `task_logits`, both float32; None where there is no task."""
    match layout.task:
        case "none":
            return {"task_label": None, "task_logits": None}
        case "answers":
            return {"task_label": (sequences, 2), "task_logits": (tokens, 2)}
        case "classification":
            return {"task_label": (sequences, 1), "task_logits": (sequences, layout.task_width)}


def task_faults(targets: ShardTargets, layout: Layout) -> Iterator[str]:
    """What is wrong with the arrays of a task, whose shapes are right: it fits behind "shard X". The first of each kind."""
    offsets = targets.sequence_offsets.astype(np.int64)
    labelled, label, logits = targets.task_labelled, targets.task_label, targets.task_logits
    assert labelled is not None
    assert label is not None
    assert logits is not None
    if (targets.masked != 0).any():
        yield "masks tokens; expected none, as a task's inputs are read as they are"
    if targets.token_types is not None and (targets.token_types > 1).any():
        yield f"has token_types up to {int(targets.token_types.max())}; expected 0 or 1"
    if (labelled > 1).any():
        yield f"has task_labelled up to {int(labelled.max())}; expected 0 or 1"
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        sequence = int(np.searchsorted(offsets, row, side="right")) - 1 if layout.task == "answers" else row
        yield f"has task_logits {logits[row]} in its sequence {sequence}; expected finite numbers"
    known = labelled == 1
    most = np.diff(offsets)[:, None] if layout.task == "answers" else float(layout.task_width)
    numbered = layout.task == "answers" or layout.task_width > 1  # a score may be any number
    fine = np.isfinite(label) if not numbered else (label >= 0) & (label < most) & (label == np.floor(label))
    fine = np.where(known[:, None], fine, label == 0).all(axis=1)
    if not fine.all():
        sequence = int(np.argmin(fine))
        expected = "0, as it has no label" if not known[sequence] else "a number"
        if known[sequence] and numbered:
            expected = (
                "tokens of the sequence" if layout.task == "answers" else f"a class, 0 .. {layout.task_width - 1}"
            )
        yield f"has task_label {label[sequence]} for its sequence {sequence}; expected {expected}"
