"""Sequences of a cache in memory, still encoded: what a reader gives and what batches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs import decode_logits, decode_vectors
from storage.layout import Layout, PartName, TaskName
from storage.ragged import Indices, gather_ranges, offsets_of


@dataclass(frozen=True, kw_only=True)
class ShardArrays:
    """Some sequences of a cache with all that is stored about them, still encoded.

    S sequences, N tokens, R rows, E entries, F drawn ids; the names are those of FORMAT.md section 3. It does not
    matter which shard the sequences come from: `select` and `concatenate` make batches of it.
    """

    sequence_ids: NDArray[np.int64]  # (S,)
    sequence_offsets: NDArray[np.uint32]  # (S + 1,)
    original_ids: NDArray[Any]  # (N,) u2 or u4
    input_ids: NDArray[Any]  # (N,) u2 or u4
    masked: NDArray[np.uint8]  # (N,)
    row_token: NDArray[np.uint32]  # (R,), there also for `positions: all`
    row_offsets: NDArray[np.int64]  # (S + 1,): the rows of sequence s are row_offsets[s] .. row_offsets[s + 1] - 1
    stat: NDArray[np.float32]  # (R, 1 + 2 D), or (R, 0) where there is a task
    top_ids: NDArray[Any] | None  # (R, k), or (E,) where there is a `top_count`
    logits: dict[str, NDArray[Any]]
    """`top_logits` or `top_gap`, of the shape of `top_ids`; empty for `logits: none`."""
    hidden: dict[str, NDArray[Any]]
    """`hidden` (R, L, H), perhaps `hidden_scale` (R, L, G); empty for `hidden: none`."""
    hidden_layers: tuple[int, ...]
    """The numbers of these L layers."""
    top_count: NDArray[np.uint8] | None = None  # (R,), for `selection: threshold`
    draw_count: NDArray[np.uint8] | None = None  # (R,), as the next two where there are draws
    draw_ids: NDArray[Any] | None = None  # (F,)
    draw_weight: NDArray[np.uint8] | None = None  # (F,)
    attention: dict[str, NDArray[Any]] = field(default_factory=dict)
    """`queries`, `keys`, `values` (R, L, W), and their scales, of the blocks `attention_layers`."""
    attention_layers: tuple[int, ...] = ()
    task: TaskName = "none"
    token_types: NDArray[np.uint8] | None = None  # (N,), where the layout says so
    task_labelled: NDArray[np.uint8] | None = None  # (S,), as the next two where there is a task
    task_label: NDArray[np.float32] | None = None  # (S, 1), or (S, 2) for `answers`
    task_logits: NDArray[np.float32] | None = None  # (S, C), or (N, 2) for `answers`

    @property
    def rows(self) -> int:
        """R, the number of cached positions."""
        return len(self.row_token)

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.original_ids)

    @property
    def vectors(self) -> dict[str, NDArray[Any]]:
        """The arrays of `hidden` and `attention`."""
        return {**self.hidden, **self.attention}

    @cached_property
    def top_offsets(self) -> Indices | None:
        """i8 (R + 1,): the entries of row r are `top_offsets[r] .. top_offsets[r + 1] - 1`; None without `top_count`."""
        return None if self.top_count is None else offsets_of(self.top_count)

    @cached_property
    def draw_offsets(self) -> Indices | None:
        """i8 (R + 1,): the draws of row r are `draw_offsets[r] .. draw_offsets[r + 1] - 1`; None without draws."""
        return None if self.draw_count is None else offsets_of(self.draw_count)

    def decoded_logits(self, layout: Layout, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Logits f4 of the shape of `top_ids`, descending along each row."""
        arrays = {**self.logits, "stat": self.stat}
        if self.top_count is not None:
            arrays["top_count"] = self.top_count
        return decode_logits(layout, arrays, out)

    def decoded_hidden(self, layout: Layout, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Hidden states f4 (R, L, H)."""
        return decode_vectors(layout, "hidden", self.hidden, out)

    def decoded_attention(
        self, layout: Layout, part: PartName, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Queries, keys or values f4 (R, L, W)."""
        return decode_vectors(layout, part, self.attention, out)

    def select(self, local_sequence_indices: NDArray[np.integer[Any]]) -> ShardArrays:
        """Copies of the given sequences (indices into `sequence_ids`), in the given order."""
        chosen = np.asarray(local_sequence_indices, dtype=np.int64)
        token_offsets = self.sequence_offsets.astype(np.int64)
        tokens, new_tokens = gather_ranges(token_offsets, chosen)
        rows, new_rows = gather_ranges(self.row_offsets, chosen)
        moved = np.repeat(new_tokens[:-1] - token_offsets[chosen], np.diff(new_rows))

        def entries_of(offsets: Indices | None) -> Indices:
            # The entries of a sequence lie together, as its rows do. Without offsets an entry is a row.
            return rows if offsets is None else gather_ranges(offsets[self.row_offsets], chosen)[0]

        entries, draws = entries_of(self.top_offsets), entries_of(self.draw_offsets)
        return ShardArrays(
            sequence_ids=self.sequence_ids[chosen],
            sequence_offsets=new_tokens.astype(np.uint32),
            original_ids=self.original_ids.take(tokens),
            input_ids=self.input_ids.take(tokens),
            masked=self.masked.take(tokens),
            row_token=(self.row_token.take(rows) + moved).astype(np.uint32),
            row_offsets=new_rows,
            stat=self.stat.take(rows, axis=0),
            top_ids=_take(self.top_ids, entries),
            logits={name: array.take(entries, axis=0) for name, array in self.logits.items()},
            hidden={name: array.take(rows, axis=0) for name, array in self.hidden.items()},
            top_count=_take(self.top_count, rows),
            draw_count=_take(self.draw_count, rows),
            draw_ids=_take(self.draw_ids, draws),
            draw_weight=_take(self.draw_weight, draws),
            attention={name: array.take(rows, axis=0) for name, array in self.attention.items()},
            hidden_layers=self.hidden_layers,
            attention_layers=self.attention_layers,
            task=self.task,
            token_types=_take(self.token_types, tokens),
            task_labelled=_take(self.task_labelled, chosen),
            task_label=_take(self.task_label, chosen),
            task_logits=_take(self.task_logits, tokens if self.task == "answers" else chosen),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ShardArrays]) -> ShardArrays:
        """The sequences of all parts, one part after the other. The parts must be of one layout."""
        if not parts:
            raise ValueError("nothing to concatenate; expected at least one ShardArrays")
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        token_starts = np.cumsum([0, *(part.tokens for part in parts)])
        row_starts = np.cumsum([0, *(part.rows for part in parts)])

        def shifted(name: str, starts: Indices, *, inner: bool) -> Indices:
            pieces = [getattr(part, name).astype(np.int64) + start for part, start in zip(parts, starts, strict=False)]
            # Offsets have one more entry than sequences: the end of a part is the start of the next.
            return np.concatenate([piece[:-1] for piece in pieces[:-1]] + pieces[-1:] if inner else pieces)

        def joined(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(part, name) for part in parts])

        def joined_by_name(those: str) -> dict[str, NDArray[Any]]:
            return {
                name: np.concatenate([getattr(part, those)[name] for part in parts]) for name in getattr(first, those)
            }

        return cls(
            sequence_ids=joined("sequence_ids"),
            sequence_offsets=shifted("sequence_offsets", token_starts, inner=True).astype(np.uint32),
            original_ids=joined("original_ids"),
            input_ids=joined("input_ids"),
            masked=joined("masked"),
            row_token=shifted("row_token", token_starts, inner=False).astype(np.uint32),
            row_offsets=shifted("row_offsets", row_starts, inner=True),
            stat=joined("stat"),
            logits=joined_by_name("logits"),
            hidden=joined_by_name("hidden"),
            attention=joined_by_name("attention"),
            hidden_layers=first.hidden_layers,
            attention_layers=first.attention_layers,
            task=first.task,
            **{name: None if getattr(first, name) is None else joined(name) for name in _OPTIONAL},
        )


_OPTIONAL = (
    *("top_ids", "top_count", "draw_count", "draw_ids", "draw_weight"),
    *("token_types", "task_labelled", "task_label", "task_logits"),
)


def _take(array: NDArray[Any] | None, indices: Indices) -> NDArray[Any] | None:
    return None if array is None else array.take(indices, axis=0)
