"""What the teacher said about one shard, not yet encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import array_table
from storage.codecs import encode_logits, encode_vectors
from storage.description import CacheDescription
from storage.guards import Guards
from storage.layout import Layout, ShardId, VectorName


@dataclass(frozen=True, kw_only=True)
class ShardTargets:
    """The teacher's results for one shard: S sequences, N tokens, R rows (FORMAT.md, section 3)."""

    sequence_offsets: NDArray[np.unsignedinteger[Any]]  # (S + 1,)
    original_ids: NDArray[np.integer[Any]]  # (N,)
    input_ids: NDArray[np.integer[Any]]  # (N,)
    masked: NDArray[np.uint8]  # (N,), 0 or 1
    row_token: NDArray[np.unsignedinteger[Any]] | None  # (R,); None for `positions: all`
    stat: NDArray[np.float32]  # (R, 1 + 2 D): max, then logsumexp and entropy per temperature; (N, 0) for a task
    top_ids: NDArray[np.integer[Any]] | None  # (R, k), or (E,) where there is a `top_count`
    top_logits: NDArray[np.float32] | None  # as top_ids; a row descends, among equal ones the smaller id comes first
    hidden: NDArray[np.float32] | None  # (R, L, H); None where `encoded` has it
    top_count: NDArray[np.uint8] | None = None  # (R,), for `selection: threshold`; it sums to E
    draw_count: NDArray[np.uint8] | None = None  # (R,), as the next two where there are draws; it sums to F
    draw_ids: NDArray[np.integer[Any]] | None = None  # (F,), ascending within a row
    draw_weight: NDArray[np.uint8] | None = None  # (F,), how often each was drawn; a row's sum to the number of draws
    attention: Mapping[VectorName, NDArray[np.float32]] = field(default_factory=dict)
    """`queries`, `keys`, `values` (R, L, W), as far as they are cached and `encoded` has them not."""
    encoded: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays by name that come in their stored form already, coded where they were computed: vectors, their scales,
    `top_gap`."""
    token_types: NDArray[np.uint8] | None = None  # (N,), 0 or 1, where the layout says so
    task_labelled: NDArray[np.uint8] | None = None  # (S,), 0 or 1, as the next two for a task
    task_label: NDArray[np.float32] | None = None  # (S, 1), or (S, 2) for `answers`; 0 where there is no label
    task_logits: NDArray[np.float32] | None = None  # (S, C), or (N, 2) for `answers`

    @property
    def rows(self) -> int:
        """R, the number of cached positions."""
        return len(self.stat)

    @property
    def vectors(self) -> dict[VectorName, NDArray[np.float32]]:
        """All vectors that are not encoded yet, by the names of their arrays."""
        hidden: dict[VectorName, NDArray[np.float32]] = {} if self.hidden is None else {"hidden": self.hidden}
        return {**hidden, **self.attention}

    @property
    def counts(self) -> dict[str, int]:
        """What the shard's manifest counts (FORMAT.md, section 5)."""
        counts = {
            "sequences": len(self.sequence_offsets) - 1,
            "tokens": len(self.original_ids),
            "rows": self.rows,
            "masked": int(np.count_nonzero(self.masked)),
        }
        if self.top_count is not None and self.top_ids is not None:
            counts["entries"] = len(self.top_ids)
        if self.draw_ids is not None:
            counts["draws"] = len(self.draw_ids)
        return counts

    def check(self, description: CacheDescription, shard: ShardId, layout: Layout) -> None:
        """Refuse what must not be stored.

        Raises `InvalidTargetsError`, which names the shard and, where there is one, the first bad sequence and
        position.
        """
        Guards(self, description, shard, layout).check()

    def check_against(
        self,
        description: CacheDescription,
        shard: ShardId,
        sequence_offsets: NDArray[np.int64],
        original_ids: NDArray[np.integer[Any]],
    ) -> None:
        """Refuse targets of other sequences than these, offsets (S + 1,) from 0 and flat ids, as the token store has them.

        Raises `InvalidTargetsError`, which names the shard, the sequence and the position.
        """
        layout = description.splits[shard.split].layout
        Guards(self, description, shard, layout).check_against(sequence_offsets, original_ids)

    def encode(self, description: CacheDescription, layout: Layout) -> dict[str, NDArray[Any]]:
        """The arrays to store, by name, with the dtypes of FORMAT.md section 3. Call `check` first."""
        raw: dict[str, NDArray[Any] | None] = {name: getattr(self, name) for name in _PLAIN}
        arrays = {name: array for name, array in raw.items() if array is not None}
        arrays.update(self.encoded)
        if self.top_logits is not None and "top_gap" not in arrays:
            arrays.update(encode_logits(layout, self.top_logits, self.top_count))
        for name, vectors in self.vectors.items():
            arrays.update(encode_vectors(layout, name, vectors))
        return {
            spec.name: np.ascontiguousarray(arrays[spec.name], dtype=spec.dtype)
            for spec in array_table(description, layout)
        }


_PLAIN = (
    "sequence_offsets",
    "original_ids",
    "input_ids",
    "masked",
    "row_token",
    "stat",
    "top_count",
    "top_ids",
    "draw_count",
    "draw_ids",
    "draw_weight",
    "token_types",
    "task_labelled",
    "task_label",
    "task_logits",
)
