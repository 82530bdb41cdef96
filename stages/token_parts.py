"""Sequences on their way to `data/tokens`: parts in a work folder, each sorted by random keys, and the merge of them.

That is the shuffle. Each sequence has a random key, a function of seed, split, part and number alone; the parts' order is
that of the keys, and so is the merge's, which takes some ranges of keys at a time from all parts. So a corpus of any size is
shuffled in the memory of one part and these ranges, and each byte is written and read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stages.errors import InputError
from stages.randomness import words
from stages.sequences import TokenIds
from stages.work_folder import kept_part, whole_part
from storage.layout import Split
from storage.ragged import offsets_of

FORMAT = 2
"""Of the files of a part."""
_FILE = "sequences"
"""Keys u8 (S,), ascending; offsets i8 (S + 1,); ids, one sequence after the other. One file: the merge opens it for every range."""
_RANGE_TOKENS = 1 << 24
"""Tokens of a range of keys. A row group of `data/tokens` ends with it."""
_HELD_TOKENS = 1 << 26
"""Tokens that the merge has in memory: the ranges that it reads at a time, 130 or 270 MB. The fewer times it reads each part, the
sooner it is done on a network file system: the text of 100 GB has 3,000 parts."""


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
        with (folder / _FILE).open("wb") as file:
            keys[order].tofile(file)
            offsets_of(lengths[order]).tofile(file)
            in_order(ids, offsets_of(lengths), order).tofile(file)
        figures.update(asdict(found))
    return found


def read_figures(work: Path, part: PartId) -> PartFigures | None:
    """What an earlier run left of a part; None where that is nothing, or no longer what was written."""
    figures = kept_part(work / str(part))
    return None if figures is None else PartFigures(**figures)


class Shuffled:
    """The sequences of all parts of a split in the order of their keys, a range of keys at a time."""

    def __init__(self, work: Path, parts: Sequence[tuple[PartId, PartFigures]], dtype: np.dtype[Any]) -> None:
        """`parts` in the order of their numbers. What is given depends neither on what is read at a time nor on where."""
        self._files = [work / str(part) / _FILE for part, _ in parts]
        self.dtype = dtype
        self.sequences = sum(figures.sequences for _, figures in parts)
        self.tokens = sum(figures.tokens for _, figures in parts)
        self._ranges = max(1, -(-self.tokens // _RANGE_TOKENS))
        edges = np.array([number * 2**64 // self._ranges for number in range(1, self._ranges)], dtype=np.uint64)
        # First sequence and first token of each range in each part, and their number: i8 (parts, ranges + 1).
        self._rows, self._tokens = np.zeros((2, len(parts), self._ranges + 1), dtype=np.int64)
        for rows, tokens, path, (_, figures) in zip(self._rows, self._tokens, self._files, parts, strict=True):
            keys = np.empty(figures.sequences, dtype=np.uint64)
            offsets = np.empty(figures.sequences + 1, dtype=np.int64)
            with path.open("rb") as file:
                _read(file, 0, keys)
                _read(file, keys.nbytes, offsets)
            rows[1:-1] = np.searchsorted(keys, edges)
            rows[-1] = figures.sequences
            tokens[:] = offsets[rows]

    def lengths(self) -> Iterator[npt.NDArray[np.int64]]:
        """Tokens of the sequences, in order, some of them at a time."""
        for first, end in self._stretches():
            order, lengths, _ = self._read_stretch(first, end, ids=False)
            yield lengths[order]

    def groups(self, rows: int) -> Iterator[tuple[npt.NDArray[np.int64], TokenIds]]:
        """The sequences in order, `rows` at a time (fewer at the end of a range): lengths and ids, one after the other."""
        for first, end in self._stretches():
            order, lengths, ids = self._read_stretch(first, end, ids=True)
            offsets = offsets_of(lengths)
            for start, stop in pairwise((self._rows - self._rows[:, [first]])[:, first : end + 1].sum(axis=0).tolist()):
                for begin in range(start, stop, rows):
                    chosen = order[begin : min(begin + rows, stop)]
                    yield lengths[chosen], in_order(ids, offsets, chosen)
            del order, lengths, ids, offsets  # or they were held while the next ones are read

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """First range, and the end, of those that are read at a time."""
        step = max(1, _HELD_TOKENS // _RANGE_TOKENS)
        for first in range(0, self._ranges, step):
            yield first, min(first + step, self._ranges)

    def _read_stretch(
        self, first: int, end: int, *, ids: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], TokenIds]:
        """Order and lengths of the sequences in some ranges of keys, as they lie in the parts, and their ids if wanted."""
        rows, tokens = self._rows[:, [first, end]], self._tokens[:, [first, end]]
        keys = np.empty(np.diff(rows).sum(), dtype=np.uint64)
        lengths = np.empty(len(keys), dtype=np.int64)
        flat = np.empty(np.diff(tokens).sum() if ids else 0, dtype=self.dtype)
        row = token = 0
        for path, sequences, (start, stop), (start_token, stop_token) in zip(
            self._files, self._rows[:, -1].tolist(), rows.tolist(), tokens.tolist(), strict=True
        ):
            if start == stop:
                continue
            offsets = np.empty(stop - start + 1, dtype=np.int64)
            with path.open("rb") as file:
                _read(file, start * 8, keys[row : row + stop - start])
                _read(file, (sequences + start) * 8, offsets)
                if ids:
                    position = (2 * sequences + 1) * 8 + start_token * self.dtype.itemsize
                    _read(file, position, flat[token : token + stop_token - start_token])
            lengths[row : row + stop - start] = np.diff(offsets)
            row, token = row + stop - start, token + stop_token - start_token
        return np.argsort(keys, kind="stable"), lengths, flat


def in_order(ids: TokenIds, offsets: npt.NDArray[np.int64], order: npt.NDArray[np.int64]) -> TokenIds:
    """The ids of the sequences `order`, one after the other, of those that lie between `offsets`."""
    # Slices, not an index of each token: that would be four times the size of the ids.
    spans = zip(offsets[order].tolist(), offsets[order + 1].tolist(), strict=True)
    return np.concatenate([ids[:0], *(ids[start:stop] for start, stop in spans)])


def _read(file: BinaryIO, position: int, values: npt.NDArray[Any]) -> None:
    """Fill `values` from a position, in bytes."""
    file.seek(position)
    if file.readinto(values.data) != values.nbytes:  # type: ignore[attr-defined]
        raise InputError(f"{file.name} is shorter than it was when it was written; run the same command again")
