"""Golden caches of format 1, and the sums over their decoded arrays that a reader must come to."""

from __future__ import annotations

import numpy as np

from storage import CacheReader, ShardId


def decoded(reader: CacheReader, shard: ShardId) -> dict[str, float]:
    """A sum over each array of a shard, decoded, each entry weighed by its place so that order counts too."""
    rows, layout = reader.load(shard), reader.description.splits[shard.split].layout
    arrays = {
        "original_ids": rows.original_ids,
        "input_ids": rows.input_ids,
        "masked": rows.masked,
        "row_token": rows.row_token,
        "stat": rows.stat,
        "top_ids": rows.top_ids,
        "top_count": rows.top_count,
        "draw_ids": rows.draw_ids,
        "draw_weight": rows.draw_weight,
        "logits": rows.decoded_logits(layout) if layout.logits != "none" else None,
        "hidden": rows.decoded_hidden(layout) if layout.hidden != "none" else None,
        **{name: getattr(rows, name) for name in ("token_types", "task_labelled", "task_label", "task_logits")},
        **{part: rows.decoded_attention(layout, part) for part in layout.attention_vectors},
    }
    return {name: weighed_sum(array) for name, array in arrays.items() if array is not None}


def weighed_sum(array: np.ndarray) -> float:
    """Sum of value times (1 + place modulo 97), in float64."""
    flat = array.ravel().astype(np.float64)
    return float((flat * (1 + np.arange(len(flat)) % 97)).sum())
