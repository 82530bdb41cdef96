"""What a fine-tuned model says to the examples of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stages.context import Context
from stages.device import Precision, torch_dtype
from stages.finetuning.batches import Padded
from stages.tasks.task import Encoded, Heads, Outputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAMES: dict[Heads, tuple[str, ...]] = {"classification": ("logits",), "answers": ("start_logits", "end_logits")}
"""What is kept of the output of a model with such a head."""


@torch.inference_mode()
def outputs_of(
    model: PreTrainedModel,
    encoded: Encoded,
    head: Heads,
    *,
    pad_id: int,
    batch_size: int,
    precision: Precision,
    context: Context,
) -> list[Outputs]:
    """The model's outputs for every row, in their order. The model is left in eval mode. Raises `Interrupted`."""
    model.train(False)
    collate = Padded(pad_id)
    lengths = np.array([len(row["input_ids"]) for row in encoded.rows])
    order = np.argsort(
        -lengths, kind="stable"
    )  # little padding, and the largest batch first: it shows whether memory suffices
    outputs: list[Outputs | None] = [None] * len(order)
    device_type = torch.device(context.device).type
    for start in range(0, len(order), batch_size):
        context.stop_if_asked("the training is kept in its last checkpoint")
        places = order[start : start + batch_size]
        batch = collate([encoded.rows[place] for place in places])
        with torch.autocast(device_type, torch_dtype(precision), enabled=precision != "float32"):
            said = model(**{name: tensor.to(context.device) for name, tensor in batch.items()})
        arrays = [getattr(said, name).float().cpu().numpy() for name in NAMES[head]]
        for row, place in enumerate(places):
            outputs[place] = tuple(
                array[row, : lengths[place]] if head == "answers" else array[row] for array in arrays
            )
        context.progress.advance(len(places))
    return [output for output in outputs if output is not None]
