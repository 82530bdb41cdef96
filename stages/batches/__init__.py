"""From rows of the cache to batches of tensors and their targets: the only bridge between `storage` and torch."""

from __future__ import annotations

from stages.batches.collate import Batch, Wanted, labelled_first, labelled_rows, to_batch, training_batch
from stages.batches.decoder import TargetDecoder, decoder_for
from stages.batches.planned import SHARD_MEMORY_BYTES, PlannedBatches, slots_for
from stages.batches.split import split_batches

__all__ = [
    "SHARD_MEMORY_BYTES",
    "Batch",
    "PlannedBatches",
    "TargetDecoder",
    "Wanted",
    "decoder_for",
    "labelled_first",
    "labelled_rows",
    "slots_for",
    "split_batches",
    "to_batch",
    "training_batch",
]
