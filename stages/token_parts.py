"""Sequences on their way to `data/tokens`: parts in a work folder, each sorted by random keys, and the merge of them.

That is the shuffle. Each sequence has a random key, a function of seed, split, part and number alone; the parts' order is
that of the keys, and so is the merge's, which takes a range of keys at a time from all parts. So a corpus of any size is
shuffled in the memory of one part and one range, and each byte is written and read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.randomness import words
from stages.sequences import TokenIds
from stages.work_folder import kept_part, whole_part
from storage.layout import Split

_KEYS, _OFFSETS, _IDS = "keys", "offsets", "ids"
_RANGE_TOKENS = 1 << 24
"""Tokens of a range of keys: what the merge has in memory, about 100 MB with the copies of it."""


@dataclass(frozen=True, kw_only=True, order=True)
class PartId:
    """A few row groups of the documents of a split: the unit of work. Where parts begin depends on the documents alone."""

    split: Split
    number: int
    first_group: int
    end_group: int

    def __str__(self) -> str:
        return f"{self.split}-{self.number:06}"


@dataclass(frozen=True, kw_only=True)
class PartFigures:
    """What a part holds."""

    documents: int
    sequences: int
    tokens: int


def write_part(
    work: Path, part: PartId, seed: int, documents: int, lengths: npt.NDArray[np.int64], ids: TokenIds
) -> PartFigures:
    """Publish the sequences of a part: lengths (S,) and their ids, one after the other, as the documents have them."""
    keys = words(f"tokenize/{seed}/{part.split}", part.number, len(lengths))
    order = np.argsort(keys, kind="stable")
    found = PartFigures(documents=documents, sequences=len(lengths), tokens=len(ids))
    with whole_part(work / str(part)) as (folder, figures):
        keys[order].tofile(folder / _KEYS)
        offsets_of(lengths[order]).tofile(folder / _OFFSETS)
        in_order(ids, offsets_of(lengths), order).tofile(folder / _IDS)
        figures.update(asdict(found))
    return found


def read_figures(work: Path, part: PartId) -> PartFigures | None:
    """What an earlier run left of a part; None where that is nothing, or no longer what was written."""
    figures = kept_part(work / str(part))
    return None if figures is None else PartFigures(**figures)


class Shuffled:
    """The sequences of all parts of a split in the order of their keys, a range of keys at a time."""

    def __init__(self, work: Path, parts: Sequence[tuple[PartId, PartFigures]], dtype: np.dtype[Any]) -> None:
        """`parts` in the order of their numbers. The order of sequences does not depend on the number of ranges."""
        self._folders = [work / str(part) for part, _ in parts]
        self.dtype = dtype
        self.sequences = sum(figures.sequences for _, figures in parts)
        self.tokens = sum(figures.tokens for _, figures in parts)
        self._ranges = max(1, -(-self.tokens // _RANGE_TOKENS))
        edges = np.array([number * 2**64 // self._ranges for number in range(1, self._ranges)], dtype=np.uint64)
        # First sequence of each range in each part, and the number of sequences: i8 (parts, ranges + 1).
        self._bounds = np.zeros((len(parts), self._ranges + 1), dtype=np.int64)
        for row, folder, (_, figures) in zip(self._bounds, self._folders, parts, strict=True):
            row[1:-1] = np.searchsorted(np.fromfile(folder / _KEYS, np.uint64), edges)
            row[-1] = figures.sequences

    def lengths(self) -> Iterator[npt.NDArray[np.int64]]:
        """Tokens of the sequences, in order, a range of them at a time."""
        for number in range(self._ranges):
            order, lengths, _ = self._range(number)
            yield lengths[order]

    def groups(self, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], TokenIds]]:
        """The sequences in order, `rows` at a time (fewer at the end of a range): lengths and ids, one after the other."""
        for number in range(self._ranges):
            order, lengths, spans = self._range(number)
            ids = [_read(folder / _IDS, self.dtype, start, stop) for folder, start, stop in spans]
            flat, offsets = np.concatenate([np.empty(0, self.dtype), *ids]), offsets_of(lengths)
            for begin in range(0, len(order), rows):
                chosen = order[begin : begin + rows]
                yield lengths[chosen], in_order(flat, offsets, chosen)

    def _range(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[tuple[Path, int, int]]]:
        """Order and lengths of the sequences in a range of keys, as they lie in the parts, and where their ids are."""
        keys, lengths = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        spans: list[tuple[Path, int, int]] = []
        for folder, (first, stop) in zip(self._folders, self._bounds[:, number : number + 2].tolist(), strict=True):
            if first < stop:
                keys.append(_read(folder / _KEYS, np.dtype(np.uint64), first, stop))
                offsets = _read(folder / _OFFSETS, np.dtype(np.int64), first, stop + 1)
                lengths.append(np.diff(offsets))
                spans.append((folder, int(offsets[0]), int(offsets[-1])))
        return np.argsort(np.concatenate(keys), kind="stable"), np.concatenate(lengths), spans


def offsets_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some pieces that lie one after the other begins, and where the last ends: i8 (S + 1,)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def in_order(ids: TokenIds, offsets: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> TokenIds:
    """The ids of the sequences `order`, one after the other, of those that lie between `offsets`."""
    # Slices, not an index of each token: that would be four times the size of the ids.
    spans = zip(offsets[order].tolist(), offsets[order + 1].tolist(), strict=True)
    return np.concatenate([ids[:0], *(ids[start:stop] for start, stop in spans)])


def _read(file: Path, dtype: np.dtype[Any], start: int, stop: int) -> npt.NDArray[Any]:
    """Values `start` to `stop` of a file of nothing but values."""
    return np.fromfile(file, dtype, stop - start, offset=start * dtype.itemsize)
