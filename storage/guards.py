"""What the teacher said about a shard is checked before it is stored: a wrong cache costs more than a look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from storage.arrays import ArraySpec, array_table
from storage.codecs import Codec, decode_vectors, logits_codec, row_blocks, row_values, vector_codec
from storage.description import CacheDescription
from storage.layout import Layout, ShardId, VectorName
from storage.ragged import Indices, offsets_of
from storage.refusals import Refusals
from storage.task_targets import task_faults, task_shapes

if TYPE_CHECKING:
    from storage.targets import ShardTargets

_TOLERANCE = 1e-4
"""Of the bounds on logsumexp, entropy and log p, relative to 1 + |value|: a float32 sum over the vocabulary is off by less."""


class Guards(Refusals):
    """The checks of one shard. Each looks at a whole array and raises for the first bad entry."""

    def __init__(self, targets: ShardTargets, description: CacheDescription, shard: ShardId, layout: Layout) -> None:
        super().__init__(targets, shard, first_sequence=description.span(shard)[0])
        self.description, self.layout = description, layout
        self.sequences = description.span(shard)[1]

    def check(self) -> None:
        self._check_shapes()
        self._check_tokens()
        self._check_rows()
        if self.layout.task == "none":
            self._check_stat()
        else:
            self._check_task()
        self._check_logits()
        self._check_draws()
        self._check_vectors()

    def check_against(self, sequence_offsets: Indices, original_ids: NDArray[np.integer[Any]]) -> None:
        """The sequences are these, offsets i8 (S + 1,) and flat ids: none is missing, twice there, or changed on the way.

        Whether `check` has looked at them before or not.
        """
        if self.targets.sequence_offsets.ndim != 1:
            raise self.refuse(f"has sequence_offsets of shape {self.targets.sequence_offsets.shape}; expected one axis")
        found, expected = np.diff(self.targets.sequence_offsets.astype(np.int64)), np.diff(sequence_offsets)
        shared = min(len(found), len(expected))
        differs = found[:shared] != expected[:shared]
        if differs.any() or len(found) != len(expected):
            local = int(np.argmax(differs)) if differs.any() else shared
            lengths = [
                f"{int(lengths[local])} tokens" if local < len(lengths) else "none" for lengths in (found, expected)
            ]
            raise self.refuse(
                f"has {lengths[0]} in sequence {self.first_sequence + local}, position 0 onwards; expected {lengths[1]}, as in the tokens"
            )
        ids = self.targets.original_ids
        if ids.shape != original_ids.shape:
            raise self.refuse(f"has original_ids of shape {ids.shape}; expected {original_ids.shape}, as in the tokens")
        same = ids == original_ids
        if not same.all():
            token = int(np.argmin(same))
            raise self.refuse(
                f"has original_ids {ids[token]} at {self.place(token)}; expected {original_ids[token]}, as in the tokens"
            )

    def _check_shapes(self) -> None:
        targets, layout = self.targets, self.layout
        tokens = len(targets.original_ids)
        rows = tokens if layout.positions == "all" else targets.rows
        self._require_shapes(
            "integers",
            {
                "sequence_offsets": (self.sequences + 1,),
                "original_ids": (tokens,),
                "input_ids": (tokens,),
                "masked": (tokens,),
                "row_token": (rows,) if layout.positions != "all" else None,
                "top_count": (rows,) if layout.selection == "threshold" else None,
                "draw_count": (rows,) if layout.draws > 0 else None,
                "token_types": (tokens,) if layout.token_types else None,
                "task_labelled": (self.sequences,) if layout.task != "none" else None,
            },
        )
        kept: tuple[int, ...] | None = (rows, layout.top_k) if layout.logits != "none" else None
        if targets.top_count is not None:
            kept = (int(targets.top_count.sum(dtype=np.int64)),)
        drawn = None if targets.draw_count is None else (int(targets.draw_count.sum(dtype=np.int64)),)
        self._require_shapes("integers", {"top_ids": kept, "draw_ids": drawn, "draw_weight": drawn})
        self._require_shapes(
            "float32",
            {
                "stat": (rows, 1 + 2 * len(self.description.temperatures) if layout.task == "none" else 0),
                "top_logits": kept,
                **task_shapes(layout, self.sequences, tokens),
            },
        )
        self._check_vector_shapes(rows)
        self._check_encoded()

    def _check_vector_shapes(self, rows: int) -> None:
        widths, given = self.layout.vectors(self.description.hidden_size), self.targets.vectors
        for name in get_args(VectorName):
            shape = (rows, len(self.layout.layers(name)), widths.get(name, 0))
            expected = f"float32 {shape}" if name in widths and name not in self.targets.encoded else None
            found = f"{given[name].dtype} {given[name].shape}" if name in given else None
            if found != expected:
                raise self.refuse(f"has {name}: {found}; expected {expected}")

    def _check_encoded(self) -> None:
        """What comes in its stored form has the dtypes and shapes of the table in FORMAT.md, section 3."""
        encoded, table = self.targets.encoded, array_table(self.description, self.layout)
        counts = self.targets.counts
        for name in encoded.keys() - {spec.name for spec in table}:
            raise self.refuse(f"has {name}, which its layout does not have")
        for spec in table:
            if spec.name in encoded:
                array = encoded[spec.name]
                found, expected = f"{array.dtype} {array.shape}", f"{spec.dtype} {spec.shape(counts)}"
                if found != expected:
                    raise self.refuse(f"has {spec.name}: {found}; expected {expected}")

    def _require_shapes(self, kind: str, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
        for name, shape in shapes.items():
            array: NDArray[Any] | None = getattr(self.targets, name)
            found = None if array is None else f"{_kind(array)} {array.shape}"
            expected = None if shape is None else f"{kind} {shape}"
            if found != expected:
                raise self.refuse(f"has {name}: {found}; expected {expected}")

    def _check_tokens(self) -> None:
        targets, vocabulary_size = self.targets, self.description.vocabulary_size
        offsets = targets.sequence_offsets.astype(np.int64)
        tokens = len(targets.original_ids)
        if offsets[0] != 0 or offsets[-1] != tokens or np.any(np.diff(offsets) < 0):
            raise self.refuse(f"has sequence_offsets that do not ascend from 0 to the number of tokens, {tokens}")
        for name in ("original_ids", "input_ids"):
            ids = getattr(targets, name)
            self.require_token((ids >= 0) & (ids < vocabulary_size), name, ids, f"0 .. {vocabulary_size - 1}")
        self.require_token(targets.masked <= 1, "masked", targets.masked, "0 or 1")
        unchanged = (targets.masked == 1) | (targets.input_ids == targets.original_ids)
        self.require_token(unchanged, "input_ids", targets.input_ids, "the original id, as masked is 0 there")

    def _check_rows(self) -> None:
        row_token, masked = self.targets.row_token, self.targets.masked
        if row_token is None:
            return
        if self.layout.positions == "masked":
            if not np.array_equal(row_token, np.flatnonzero(masked)):
                raise self.refuse(
                    f"has {len(row_token)} entries in row_token that are not its {int(masked.sum())} "
                    "masked tokens in order"
                )
            return
        tokens = len(masked)
        indices = row_token.astype(np.int64)
        if len(indices) and (indices[0] < 0 or indices[-1] >= tokens or np.any(np.diff(indices) <= 0)):
            raise self.refuse(f"has a row_token that does not ascend strictly below the number of tokens, {tokens}")
        has_row = np.zeros(tokens, np.bool_)
        has_row[indices] = True
        self.require_token(has_row | (masked == 0), "masked", masked, "a row for it in row_token")

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
            self.require_row(
                inside, f"logsumexp at T = {temperature}", logsumexp, "between max / T and max / T + log V"
            )
            inside = (entropy >= -_TOLERANCE) & (entropy <= log_vocabulary + _TOLERANCE * (1 + log_vocabulary))
            self.require_row(inside, f"entropy at T = {temperature}", entropy, "between 0 and log V nats")

    def _check_task(self) -> None:
        for found in task_faults(self.targets, self.layout):
            raise self.refuse(found)

    def _check_logits(self) -> None:
        top_ids, top_logits, top_count = self.targets.top_ids, self.targets.top_logits, self.targets.top_count
        if top_ids is None or top_logits is None:
            return
        if top_count is not None:
            self.require_row(
                _within(top_count, 1, self.layout.top_k), "top_count", top_count, f"1 .. {self.layout.top_k}"
            )
        offsets = self._top_offsets()
        ids, logits = top_ids.reshape(-1), top_logits.reshape(-1)
        codec = logits_codec(self.layout)
        limit = np.inf if codec is None else codec.limit
        largest_id = self.description.vocabulary_size - 1
        for rows, block in _entry_blocks(offsets):
            i, z = ids[block], logits[block]
            starts = offsets[rows] - block.start
            self.require_entries(_within(i, 0, largest_id), block, offsets, "top_ids", ids, f"0 .. {largest_id}")
            finite = np.abs(z) <= limit  # not so for NaN
            self.require_entries(
                finite, block, offsets, "top_logits", logits, f"finite and of magnitude at most {limit:g}"
            )
            maximum = self.targets.stat[rows, 0]
            self.require_row(
                z[starts] == maximum, "the first of top_logits", z[starts], "the row's maximum in stat", rows.start
            )
            ordered = np.ones(len(z), np.bool_)
            ordered[1:] = (z[1:] < z[:-1]) | ((z[1:] == z[:-1]) & (i[1:] > i[:-1]))
            ordered[starts] = True
            self.require_entries(
                ordered, block, offsets, "top_logits", logits, "descending, among equal ones the smaller id first"
            )
            if top_count is not None:
                likely = self._is_likely(z, rows, top_count)
                likely[starts] = True
                expected = f"logits with p >= {self.layout.threshold:g} at T = {self.layout.threshold_temperature:g}"
                self.require_entries(likely, block, offsets, "top_logits", logits, f"{expected} after the first")

    def _is_likely(self, z: NDArray[np.float32], rows: slice, top_count: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether the entries `z` (e,) of these rows reach the threshold, up to rounding."""
        temperature = self.layout.threshold_temperature
        column = 1 + 2 * self.description.temperatures.index(temperature)
        scaled = z.astype(np.float64) / temperature
        log_p = scaled - np.repeat(self.targets.stat[rows, column], top_count[rows])
        likely: NDArray[np.bool_] = log_p >= np.log(self.layout.threshold) - _TOLERANCE * (1 + np.abs(scaled))
        return likely

    def _check_draws(self) -> None:
        count, ids, weight = self.targets.draw_count, self.targets.draw_ids, self.targets.draw_weight
        if count is None or ids is None or weight is None:
            return
        draws, largest_id = self.layout.draws, self.description.vocabulary_size - 1
        self.require_row(_within(count, 1, draws), "draw_count", count, f"1 .. {draws}")
        offsets = offsets_of(count)
        everything = slice(0, len(ids))
        self.require_entries(_within(ids, 0, largest_id), everything, offsets, "draw_ids", ids, f"0 .. {largest_id}")
        ascending = np.ones(len(ids), np.bool_)
        ascending[1:] = ids[1:] > ids[:-1]
        ascending[offsets[:-1]] = True
        self.require_entries(ascending, everything, offsets, "draw_ids", ids, "strictly ascending")
        self.require_entries(_within(weight, 1, draws), everything, offsets, "draw_weight", weight, f"1 .. {draws}")
        total = np.add.reduceat(weight, offsets[:-1], dtype=np.int64)
        self.require_row(total == draws, "the sum of draw_weight", total, f"the number of draws, {draws}")
        if self.layout.draw_from == "tail":
            self._check_tail(ids, offsets)

    def _check_tail(self, draw_ids: NDArray[np.integer[Any]], draw_offsets: Indices) -> None:
        """No id that was drawn from the tail is among the row's `top_ids`."""
        top_ids, top_offsets = self.targets.top_ids, self._top_offsets()
        if top_ids is None:
            return
        for rows, top in _entry_blocks(top_offsets):
            drawn = slice(int(draw_offsets[rows.start]), int(draw_offsets[rows.stop]))
            # One number for row and id, so that one look-up serves all rows.
            cached = self._keys(top_ids.reshape(-1)[top], np.diff(top_offsets[rows.start : rows.stop + 1]))
            found = self._keys(draw_ids[drawn], np.diff(draw_offsets[rows.start : rows.stop + 1]))
            outside = ~np.isin(found, cached)
            self.require_entries(outside, drawn, draw_offsets, "draw_ids", draw_ids, "ids that are not in top_ids")

    def _keys(self, ids: NDArray[np.integer[Any]], counts: Indices) -> Indices:
        return np.repeat(np.arange(len(counts)) * self.description.vocabulary_size, counts) + ids.astype(np.int64)

    def _top_offsets(self) -> Indices:
        top_count = self.targets.top_count
        if top_count is not None:
            return offsets_of(top_count)
        return np.arange(self.targets.rows + 1, dtype=np.int64) * self.layout.top_k

    def _check_vectors(self) -> None:
        for name, vectors in self.targets.vectors.items():
            self._require_finite(name, vectors, vector_codec(self.layout, name))
        encoded = self.targets.encoded
        for spec in array_table(self.description, self.layout):
            if spec.name in encoded and not spec.holds_only_data(encoded[spec.name]):
                self._refuse_encoded(spec)

    def _refuse_encoded(self, spec: ArraySpec) -> NoReturn:
        """What was not finite before it was coded is not so after it."""
        for name in get_args(VectorName):
            if spec.target == name and name in self.targets.encoded:
                with np.errstate(invalid="ignore"):
                    values = decode_vectors(self.layout, name, self.targets.encoded)
                self._require_finite(name, values, vector_codec(self.layout, name))
        raise self.refuse(f"has a value in {spec.name} that no codec gives")

    def _require_finite(self, name: str, values: NDArray[np.float32], codec: Codec | None = None) -> None:
        """Every value is finite and, where it is coded, within what the codec takes."""
        limit = codec.limit if codec is not None else float(np.finfo(np.float32).max)
        for block in row_blocks(len(values), row_values(values)):
            part = values[block].reshape(block.stop - block.start, -1)
            with np.errstate(invalid="ignore"):
                largest = np.abs(part).max(axis=1)  # NaN where there is one
                fine = largest <= limit
            self.require_row(
                fine, f"the largest magnitude in {name}", largest, f"finite and at most {limit:g}", block.start
            )


def _kind(array: NDArray[Any]) -> str:
    return "integers" if array.dtype.kind in "iu" else str(array.dtype)


def _within(values: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    return (values >= low) & (values <= high)


def _entry_blocks(offsets: Indices) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, and where their entries lie."""
    rows = len(offsets) - 1
    for block in row_blocks(rows, int(offsets[-1]) // max(1, rows)):
        yield block, slice(int(offsets[block.start]), int(offsets[block.stop]))
