"""From rows of the cache to tensors: each row is copied once, from where it was decoded to its place in the batch.

A batch is a dict of tensors as they are stored: int8 stays int8 on its way to the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.figures import Objective
from stages.losses import IGNORED
from stages.masking import next_tokens
from storage import PartName, ShardArrays, Target
from storage.ragged import Indices, gather_ranges

Batch = dict[str, Tensor]
Array = npt.NDArray[Any]
Arrays = dict[str, Array]
_OF_SEQUENCES = ("input_ids", "attention_mask")
"""What of a batch does not belong to rows."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of the stored targets a loss reads: the others are neither decoded nor do they travel to the device."""

    hidden: bool
    logits: bool
    draws: bool = False
    layers: tuple[int, ...] = ()
    """Cached hidden layers, by the teacher's numbers, beside the last cached one (`hidden`) or instead of it."""
    attention: tuple[PartName, ...] = ()
    """Vectors of attention: `queries`, `keys`, `values`, of all cached blocks."""

    @property
    def targets(self) -> frozenset[Target]:
        """What a reader of the cache has to read."""
        wanted: dict[Target, bool] = {
            "hidden": self.hidden or bool(self.layers),
            "logits": self.logits,
            "draws": self.draws,
        }
        return frozenset(self.attention) | {name for name in wanted if wanted[name]}


def layer_key(name: str, layer: int | None) -> str:
    """The key in a batch of one layer's array; None: the last cached one, whose key is the array's name.

    A key for each layer, so that each lies in one piece and what nobody wants need not be there.
    """
    return name if layer is None else f"{name}:{layer}"


def to_batch(rows: ShardArrays, *, pad_id: int, wanted: Wanted, objective: Objective = "masked") -> Batch:
    """Pad the sequences of `rows` (S sequences, R rows, longest L) and lay their rows out flat.

    `input_ids`, `attention_mask` i8 (S, L); `row_index` i8 (R,): place of each row in the flattened (S L,); `labels` i8
    (R,): the original token where it is masked, or, where the teacher's `objective` is causal, the one that follows it; and, as
    stored, the last of `hidden` (R, 1, H), its `hidden_scale`, `stat`, `top_ids` i8 (R, k), `top_gap` or `top_logits`,
    `draw_ids` i8 (R, n) and `draw_weight`; other layers as `hidden:3` (R, 1, H) and `hidden_scale:3`, vectors of attention as
    `queries:12` (R, 1, W) and `queries_scale:12`.

    What is ragged in the cache is as wide as its longest row here: a shorter row repeats its first id, with a weight of 0
    for draws; `top_count` u1 (R,) says how many of the logits count.
    """
    sequences, picked = _sequences([(rows, np.arange(len(rows.sequence_ids)))], pad_id, objective)
    return _as_tensors(sequences | _targets(picked, wanted))


def labelled_first(batch: Batch) -> Batch:
    """The same batch for a loss: first the rows that are predicted, in their order, then the others.

    `labels` i8 (n,) are those of the first n rows. So their number is known without asking the device, and no kernel has to choose
    rows among (rows, V) logits.
    """
    labelled = batch["labels"] != IGNORED
    of_rows = [name for name in batch if name not in _OF_SEQUENCES]
    if not labelled.all():
        order = torch.cat([labelled.nonzero(), (~labelled).nonzero()]).squeeze(1)
        batch = batch | {name: batch[name][order] for name in of_rows}
    return batch | {"labels": batch["labels"][: int(labelled.sum())]}


def labelled_rows(batch: Batch) -> Batch:
    """Of a batch of `labelled_first`, the rows that are predicted and no others."""
    count = len(batch["labels"])
    return {name: tensor if name in _OF_SEQUENCES else tensor[:count] for name, tensor in batch.items()}


def training_batch(
    parts: Sequence[tuple[ShardArrays, Indices]], *, pad_id: int, wanted: Wanted, objective: Objective = "masked"
) -> Batch:
    """`labelled_first` of `to_batch` of the given sequences (numbers within the arrays), one part after the other.

    The order of the rows is chosen before they are copied, so they are copied once.
    """
    sequences, picked = _sequences(parts, pad_id, objective)
    labelled = sequences["labels"] != IGNORED
    of_part = np.split(labelled, np.cumsum([len(some.rows) for some in picked[:-1]]))
    groups = [[some.where(of) for some, of in zip(picked, of_part, strict=True)]]
    if not labelled.all():
        groups.append([some.where(~of) for some, of in zip(picked, of_part, strict=True)])
    order = np.concatenate([np.flatnonzero(labelled), np.flatnonzero(~labelled)])
    sequences["row_index"] = sequences["row_index"][order]
    sequences["labels"] = sequences["labels"][order[: int(labelled.sum())]]
    return _as_tensors(sequences | _targets([some for group in groups for some in group], wanted))


@dataclass(frozen=True)
class _Picked:
    """Rows of the arrays of a shard, by number."""

    arrays: ShardArrays
    rows: Indices

    def where(self, kept: npt.NDArray[np.bool_]) -> _Picked:
        """Those of the rows that are marked."""
        return _Picked(self.arrays, self.rows[kept])


def _sequences(
    parts: Sequence[tuple[ShardArrays, Indices]], pad_id: int, objective: Objective
) -> tuple[Arrays, list[_Picked]]:
    """What of a batch is not the teacher's, and the rows of each part."""
    tokens, lengths, rows, places, labels, picked = [], [], [], [], [], []
    for arrays, chosen in parts:
        offsets = arrays.sequence_offsets.astype(np.int64)
        of_tokens, token_offsets = gather_ranges(offsets, chosen)
        of_rows, row_offsets = gather_ranges(arrays.row_offsets, chosen)
        token = arrays.row_token.take(of_rows).astype(np.int64)
        tokens.append(arrays.input_ids.take(of_tokens))
        lengths.append(np.diff(token_offsets))
        rows.append(np.diff(row_offsets))
        places.append(token - np.repeat(offsets[chosen], rows[-1]))
        labels.append((_following if objective == "causal" else _masked)(arrays, token))
        picked.append(_Picked(arrays, of_rows))
    length = np.concatenate(lengths)
    longest = int(length.max())
    real = np.arange(longest) < length[:, None]
    input_ids = np.full(real.shape, pad_id, np.int64)
    input_ids[real] = np.concatenate(tokens)
    begins = np.arange(0, real.size, longest)  # of each sequence in the flattened (S, L)
    return {
        "input_ids": input_ids,
        "attention_mask": real.astype(np.int64),
        "row_index": np.concatenate(places) + np.repeat(begins, np.concatenate(rows)),
        "labels": np.concatenate(labels),
    }, picked


def _masked(arrays: ShardArrays, tokens: Indices) -> Indices:
    """The original ids of tokens (their numbers within the arrays), where they are masked."""
    original = arrays.original_ids.take(tokens).astype(np.int64)
    return np.where(arrays.masked.take(tokens) == 1, original, IGNORED)


def _following(arrays: ShardArrays, tokens: Indices) -> Indices:
    """The ids after tokens (their numbers within the arrays) in the same sequence; nothing follows the last one."""
    labels = next_tokens(arrays.original_ids, IGNORED)
    labels[arrays.sequence_offsets[1:].astype(np.int64) - 1] = IGNORED
    return labels.take(tokens)


def _targets(picked: Sequence[_Picked], wanted: Wanted) -> Arrays:
    """The wanted targets of the rows, as far as they are cached."""
    first, found = picked[0].arrays, Arrays()
    for key, name, index in _layers(first, wanted):
        found[key] = _taken([_layer(some, name, index) for some in picked])
    if wanted.logits or wanted.draws:
        found["stat"] = _of_rows(picked, lambda arrays: arrays.stat)
    if wanted.logits and first.top_ids is not None:
        names = ("top_ids", *first.logits)
        if first.top_count is None:
            found.update({name: _of_rows(picked, _array(name)) for name in names})
        else:
            count = _of_rows(picked, _array("top_count"))
            found.update({name: _of_entries(picked, name, "top_offsets", count) for name in names}, top_count=count)
        found["top_ids"] = found["top_ids"].astype(np.int64)
    if wanted.draws and first.draw_ids is not None:
        count = _of_rows(picked, _array("draw_count"))
        ids, weight = (_of_entries(picked, name, "draw_offsets", count) for name in ("draw_ids", "draw_weight"))
        weight[~_inside(count)] = 0
        found.update(draw_ids=ids.astype(np.int64), draw_weight=weight)
    return found


def _layers(arrays: ShardArrays, wanted: Wanted) -> Iterator[tuple[str, str, int]]:
    """Of every layer of vectors that is wanted and cached: its key in a batch, its array, and its place in that."""
    last = len(arrays.hidden_layers) - 1
    for name in arrays.hidden:
        for index, layer in enumerate(arrays.hidden_layers):
            if layer in wanted.layers or (wanted.hidden and index == last):
                yield layer_key(name, None if index == last else layer), name, index
    for name in arrays.attention:
        if name.removesuffix("_scale") in wanted.attention:
            for index, block in enumerate(arrays.attention_layers):
                yield layer_key(name, block), name, index


def _array(name: str) -> Callable[[ShardArrays], Array]:
    """Gives the array of that name."""
    return lambda arrays: arrays.logits[name] if name in arrays.logits else getattr(arrays, name)


def _of_rows(picked: Sequence[_Picked], array: Callable[[ShardArrays], Array]) -> Array:
    return _taken([(array(some.arrays), some.rows) for some in picked])


def _of_entries(picked: Sequence[_Picked], name: str, offsets: str, count: Array) -> Array:
    """(R, longest) of a flat array with one entry per row or more: shorter rows are filled up with their first."""
    sources, places = [], np.where(_inside(count), np.arange(_width(count)), 0)
    begin = 0
    for some in picked:
        start = getattr(some.arrays, offsets)[some.rows]
        sources.append((_array(name)(some.arrays), start[:, None] + places[begin : begin + len(start)]))
        begin += len(start)
    return _taken(sources)


def _layer(some: _Picked, name: str, index: int) -> tuple[Array, Indices]:
    """(R, L, ...) as (R L, 1, ...), and where in it the layer at `index` of the rows is."""
    array = some.arrays.vectors[name]
    layers = array.shape[1]
    return array.reshape(-1, 1, *array.shape[2:]), some.rows * layers + index


def _taken(sources: Sequence[tuple[Array, Indices]]) -> Array:
    """The entries at the given places of each array, one array after the other. Each is copied once."""
    array, places = sources[0]
    shape = (sum(len(some) for _, some in sources), *places.shape[1:], *array.shape[1:])
    out, begin = np.empty(shape, array.dtype), 0
    for array, places in sources:
        # Unless the mode is another, numpy takes into a buffer first, to leave `out` as it was after an error.
        array.take(places, axis=0, out=out[begin : begin + len(places)], mode="clip")
        begin += len(places)
    return out


def _width(count: Array) -> int:
    return int(count.max(initial=1))


def _inside(count: Array) -> npt.NDArray[np.bool_]:
    """B (rows, longest): which places of a padded array hold an entry of the row."""
    return np.arange(_width(count)) < count[:, None]


def _as_tensors(arrays: Arrays) -> Batch:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
