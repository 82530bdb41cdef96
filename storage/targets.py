"""What the teacher said about one shard, not yet encoded, and the guards that it passes before it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import array_table
from storage.codecs import Codec, encode_hidden, encode_logits, hidden_codec, logits_codec, row_blocks, row_values
from storage.description import CacheDescription
from storage.errors import InvalidTargetsError
from storage.layout import Layout, ShardId

_TOLERANCE = 1e-4
"""Of the bounds on logsumexp and entropy, relative to 1 + |value|: a float32 sum over the vocabulary is off by less."""


@dataclass(frozen=True, kw_only=True)
class ShardTargets:
    """The teacher's results for one shard: S sequences, N tokens, R rows (FORMAT.md, section 3)."""

    sequence_offsets: NDArray[np.unsignedinteger[Any]]  # (S + 1,)
    original_ids: NDArray[np.integer[Any]]  # (N,)
    input_ids: NDArray[np.integer[Any]]  # (N,)
    masked: NDArray[np.uint8]  # (N,), 0 or 1
    row_token: NDArray[np.unsignedinteger[Any]] | None  # (R,); None for `positions: all`
    stat: NDArray[np.float32]  # (R, 1 + 2 D): max, then logsumexp and entropy per temperature
    top_ids: NDArray[np.integer[Any]] | None  # (R, k)
    top_logits: NDArray[np.float32] | None  # (R, k), descending; among equal ones the smaller id first
    hidden: NDArray[np.float32] | None  # (R, L, H)

    @property
    def rows(self) -> int:
        """R, the number of cached positions."""
        return len(self.stat)

    def check(self, description: CacheDescription, shard: ShardId, layout: Layout) -> None:
        """Refuse what must not be stored.

        Raises `InvalidTargetsError`, which names the shard and, where there is one, the first bad sequence and
        position.
        """
        _Guards(self, description, shard, layout).check()

    def encode(self, description: CacheDescription, layout: Layout) -> dict[str, NDArray[Any]]:
        """The arrays to store, by name, with the dtypes of FORMAT.md section 3. Call `check` first."""
        raw: dict[str, NDArray[Any] | None] = {name: getattr(self, name) for name in _PLAIN}
        arrays = {name: array for name, array in raw.items() if array is not None}
        if self.top_logits is not None:
            arrays.update(encode_logits(layout, self.top_logits))
        if self.hidden is not None:
            arrays.update(encode_hidden(layout, self.hidden))
        return {
            spec.name: np.ascontiguousarray(arrays[spec.name], dtype=spec.dtype)
            for spec in array_table(description, layout)
        }


_PLAIN = ("sequence_offsets", "original_ids", "input_ids", "masked", "row_token", "stat", "top_ids")


def _kind(array: NDArray[Any]) -> str:
    return "integers" if array.dtype.kind in "iu" else str(array.dtype)


class _Guards:
    """The checks of one shard. Each looks at a whole array and raises for the first bad entry."""

    def __init__(self, targets: ShardTargets, description: CacheDescription, shard: ShardId, layout: Layout) -> None:
        self.targets, self.description, self.shard, self.layout = targets, description, shard, layout
        self.sequence_start, self.sequences = description.span(shard)

    def check(self) -> None:
        self._check_shapes()
        self._check_tokens()
        self._check_rows()
        self._check_stat()
        self._check_logits()
        self._check_hidden()

    def _check_shapes(self) -> None:
        targets, layout = self.targets, self.layout
        tokens = len(targets.original_ids)
        rows = tokens if layout.positions == "all" else targets.rows
        kept = (rows, layout.top_k) if layout.logits != "none" else None
        states = (rows, len(layout.hidden_layers), self.description.hidden_size)
        integers: dict[str, tuple[int, ...] | None] = {
            "sequence_offsets": (self.sequences + 1,),
            "original_ids": (tokens,),
            "input_ids": (tokens,),
            "masked": (tokens,),
            "row_token": (rows,) if layout.positions != "all" else None,
            "top_ids": kept,
        }
        floats: dict[str, tuple[int, ...] | None] = {
            "stat": (rows, 1 + 2 * len(self.description.temperatures)),
            "top_logits": kept,
            "hidden": states if layout.hidden != "none" else None,
        }
        for kind, shapes in (("integers", integers), ("float32", floats)):
            for name, shape in shapes.items():
                array: NDArray[Any] | None = getattr(targets, name)
                found = None if array is None else f"{_kind(array)} {array.shape}"
                expected = None if shape is None else f"{kind} {shape}"
                if found != expected:
                    raise self._refuse(f"has {name}: {found}; expected {expected}")

    def _check_tokens(self) -> None:
        targets, vocabulary_size = self.targets, self.description.vocabulary_size
        offsets = targets.sequence_offsets.astype(np.int64)
        tokens = len(targets.original_ids)
        if offsets[0] != 0 or offsets[-1] != tokens or np.any(np.diff(offsets) < 0):
            raise self._refuse(f"has sequence_offsets that do not ascend from 0 to the number of tokens, {tokens}")
        for name in ("original_ids", "input_ids"):
            ids = getattr(targets, name)
            self._require_token((ids >= 0) & (ids < vocabulary_size), name, ids, f"0 .. {vocabulary_size - 1}")
        self._require_token(targets.masked <= 1, "masked", targets.masked, "0 or 1")
        unchanged = (targets.masked == 1) | (targets.input_ids == targets.original_ids)
        self._require_token(unchanged, "input_ids", targets.input_ids, "the original id, as masked is 0 there")

    def _check_rows(self) -> None:
        row_token = self.targets.row_token
        if row_token is not None and not np.array_equal(row_token, np.flatnonzero(self.targets.masked)):
            raise self._refuse(
                f"has {len(row_token)} entries in row_token that are not its {int(self.targets.masked.sum())} "
                "masked tokens in order"
            )

    def _check_stat(self) -> None:
        stat = self.targets.stat
        self._require_finite("stat", stat)
        log_vocabulary = float(np.log(self.description.vocabulary_size))
        maximum = stat[:, 0].astype(np.float64)
        for index, temperature in enumerate(self.description.temperatures):
            logsumexp, entropy = stat[:, 1 + 2 * index], stat[:, 2 + 2 * index]
            low = maximum / temperature
            slack = _TOLERANCE * (1 + np.abs(low))
            inside = (logsumexp >= low - slack) & (logsumexp <= low + log_vocabulary + slack)
            self._require_row(
                inside, f"logsumexp at T = {temperature}", logsumexp, "between max / T and max / T + log V"
            )
            inside = (entropy >= -_TOLERANCE) & (entropy <= log_vocabulary + _TOLERANCE * (1 + log_vocabulary))
            self._require_row(inside, f"entropy at T = {temperature}", entropy, "between 0 and log V nats")

    def _check_logits(self) -> None:
        top_ids, top_logits = self.targets.top_ids, self.targets.top_logits
        if top_ids is None or top_logits is None:
            return
        vocabulary_size = self.description.vocabulary_size
        inside = (top_ids.min(axis=1) >= 0) & (top_ids.max(axis=1) < vocabulary_size)
        self._require_row(inside, "top_ids", top_ids, f"0 .. {vocabulary_size - 1}")
        self._require_finite("top_logits", top_logits, logits_codec(self.layout))
        self._require_row(
            top_logits[:, 0] == self.targets.stat[:, 0],
            "the first of top_logits",
            top_logits[:, 0],
            "the row's maximum in stat",
        )
        for block in row_blocks(*top_logits.shape):
            falls = np.diff(top_logits[block], axis=1)
            ordered = (falls < 0) | ((falls == 0) & (top_ids[block, 1:] > top_ids[block, :-1]))
            self._require_row(
                np.logical_and.reduce(ordered, axis=1),
                "top_logits",
                top_logits[block],
                "descending, among equal ones the smaller id first",
                block.start,
            )

    def _check_hidden(self) -> None:
        if self.targets.hidden is not None:
            self._require_finite("hidden", self.targets.hidden, hidden_codec(self.layout))

    def _require_finite(self, name: str, values: NDArray[np.float32], codec: Codec | None = None) -> None:
        """Every value is finite and, where it is coded, within what the codec takes."""
        limit = codec.limit if codec is not None else float(np.finfo(np.float32).max)
        for block in row_blocks(len(values), row_values(values)):
            part = values[block].reshape(block.stop - block.start, -1)
            with np.errstate(invalid="ignore"):
                largest = np.abs(part).max(axis=1)  # NaN where there is one
                fine = largest <= limit
            self._require_row(
                fine, f"the largest magnitude in {name}", largest, f"finite and at most {limit:g}", block.start
            )

    def _require_token(self, fine: NDArray[np.bool_], name: str, values: NDArray[Any], expected: str) -> None:
        if not fine.all():
            token = int(np.argmin(fine))
            raise self._refuse(f"has {name} {values[token]} at {self._place(token)}; expected {expected}")

    def _require_row(
        self, fine: NDArray[np.bool_], name: str, values: NDArray[Any], expected: str, first_row: int = 0
    ) -> None:
        if not fine.all():
            row = int(np.argmin(fine))
            row_token = self.targets.row_token
            token = first_row + row if row_token is None else int(row_token[first_row + row])
            shown = (
                f"{values[row]:g}"
                if values.ndim == 1
                else np.array2string(values[row], threshold=8, max_line_width=200)
            )
            raise self._refuse(f"has {name} = {shown} at {self._place(token)}; expected {expected}")

    def _place(self, token: int) -> str:
        offsets = self.targets.sequence_offsets
        sequence = int(np.searchsorted(offsets, token, side="right")) - 1
        return f"sequence {self.sequence_start + sequence}, position {token - int(offsets[sequence])}"

    def _refuse(self, what: str) -> InvalidTargetsError:
        return InvalidTargetsError(f"shard {self.shard} {what}; nothing was stored")
