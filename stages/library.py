"""What a training loop of one's own needs, in one place: `from stages.library import ...`. docs/library.md shows how it fits together.

`storage` opens and reads caches; the names here turn what it reads into batches, targets and losses. They ask for no
params.yaml, no project folder and no Trainer.
"""

from __future__ import annotations

from stages.batch_plan import BatchPlan
from stages.batches import (
    Batch,
    PlannedBatches,
    TargetDecoder,
    Wanted,
    decoder_for,
    labelled_first,
    split_batches,
    to_batch,
)
from stages.cache_dataset import iterable_dataset
from stages.divergences import DenseTargets, DrawnTargets, HiddenTargets, Targets, TopKTargets
from stages.forward_pass import encoder_hidden
from stages.heads import Head
from stages.held_out import held_out_figures
from stages.losses import DistillationLoss, cosine_loss_sum, distillation_loss

__all__ = [
    "Batch",
    "BatchPlan",
    "DenseTargets",
    "DistillationLoss",
    "DrawnTargets",
    "Head",
    "HiddenTargets",
    "PlannedBatches",
    "TargetDecoder",
    "Targets",
    "TopKTargets",
    "Wanted",
    "cosine_loss_sum",
    "decoder_for",
    "distillation_loss",
    "encoder_hidden",
    "held_out_figures",
    "iterable_dataset",
    "labelled_first",
    "split_batches",
    "to_batch",
]
