"""Sequences that stand for a split: pieces from all over it, as the teacher will see them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from stages.config import Config
from stages.context import Context
from stages.masking import masker_of
from stages.sequences import TokenStore
from stages.teacher_targets import SeenSequences, mask_shard
from storage import CacheDescription, ShardId, Split

PIECES = 5
"""Of the train split: the teacher's speed is the median over them."""
YARDSTICK_PIECES, YARDSTICK_SHARE = 2, 4
"""Of validation and test, which are a small part of a cache, and what share of the train split's tokens they have."""


def draw_samples(
    config: Config, context: Context, tokens: TokenStore, description: CacheDescription, sample_tokens: int
) -> dict[Split, list[SeenSequences]]:
    """The pieces of each split, `sample_tokens` tokens of the train split in all.

    On a GPU, which is slow while it is not full, a piece of the train split is at least a batch of the teacher's.
    """
    piece_tokens = -(-sample_tokens // PIECES)
    full = piece_tokens if torch.device(context.device).type == "cpu" else max(piece_tokens, config.cache.batch_tokens)
    yardstick = -(-sample_tokens // (YARDSTICK_SHARE * YARDSTICK_PIECES))
    sizes = {
        split: (PIECES, full) if split == "train" else (YARDSTICK_PIECES, yardstick) for split in description.splits
    }
    return {
        split: _draw(config, tokens, split, description.splits[split].sequences, *size) for split, size in sizes.items()
    }


def _draw(
    config: Config, tokens: TokenStore, split: Split, sequences: int, pieces: int, piece_tokens: int
) -> list[SeenSequences]:
    """Pieces of the first `sequences` sequences of a split, masked as in variant 0 of the cache."""
    masker, shard = masker_of(config, tokens, split), ShardId(split, 0, 0)
    spans = spread_spans(tokens.split(split).lengths[:sequences], pieces, piece_tokens)
    return [mask_shard(tokens, masker, shard, span, seed=config.masking.seed) for span in spans]


def spread_spans(lengths: npt.NDArray[np.integer], pieces: int, piece_tokens: int) -> list[tuple[int, int]]:
    """First sequence and count of up to `pieces` spans of about `piece_tokens` tokens, evenly over the split, without overlap.

    All of a split that is no longer than they are together.
    """
    ends = np.cumsum(lengths.astype(np.int64))
    total = int(ends[-1])
    starts = np.unique(np.searchsorted(ends, [piece * total // pieces for piece in range(pieces)], side="right"))
    spans = []
    for start, following in zip(starts, [*starts[1:], len(lengths)], strict=True):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + piece_tokens)) + 1
        spans.append((int(start), min(stop, int(following)) - int(start)))
    return spans
