"""The files in `data/tokens`: token sequences by split and id, the tokenizer, and counts. Written by `tokenize`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError
from stages.outputs import write_json
from storage.layout import SPLITS, Split

TOKENIZER = "tokenizer"
TOKENS = "tokens.json"
COUNTS = "token_counts.parquet"
_REDO = "run: pipeline tokenize"

TokenIds = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class SequenceWriter:
    """Writes one split. Row n of the file is sequence n; a row has `input_ids` and their number, `length`."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        values = pa.from_numpy_dtype(dtype)
        self._schema = pa.schema([("input_ids", pa.list_(values)), ("length", pa.uint32())])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write_group(self, lengths: npt.NDArray[np.integer[Any]], ids: TokenIds) -> None:
        """Append sequences as one row group: lengths (S,) and their ids, one after the other, (sum of lengths,)."""
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        rows = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids.astype(self._dtype, copy=False)))
        table = pa.Table.from_arrays([rows, pa.array(lengths.astype(np.uint32))], schema=self._schema)
        self._writer.write_table(table, row_group_size=max(1, len(lengths)))


@dataclass
class SequenceSplit:
    """The sequences of one split, by id 0..N-1. One row group of the file is in memory at a time."""

    path: Path
    _held: tuple[int, npt.NDArray[np.int64], TokenIds] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return int(self._group_starts[-1])

    @cached_property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Tokens of each sequence, u4 (N,)."""
        with self._opened() as file:
            lengths: npt.NDArray[np.uint32] = file.read(columns=["length"]).column("length").to_numpy()
        return lengths

    def read(self, start: int, count: int) -> tuple[npt.NDArray[np.int64], TokenIds]:
        """Sequences `start .. start + count - 1`: offsets i8 (count + 1,), from 0, and flat ids u2 or u4.

        Raises `IndexError` outside the split and `InputError` for a damaged file.
        """
        if not 0 <= start <= start + count <= len(self):
            raise IndexError(f"sequences {start} to {start + count} of {len(self)} in {self.path}")
        offsets = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(self.lengths[start : start + count], out=offsets[1:])
        ids = np.empty(int(offsets[-1]), dtype=self.dtype)
        first = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        for number in range(first, len(self._group_starts) - 1):
            group_start, group_stop = int(self._group_starts[number]), int(self._group_starts[number + 1])
            begin, stop = max(start, group_start), min(start + count, group_stop)
            if begin >= stop:
                break
            group_offsets, group_ids = self._group(number)
            ids[offsets[begin - start] : offsets[stop - start]] = group_ids[
                group_offsets[begin - group_start] : group_offsets[stop - group_start]
            ]
        return offsets, ids

    def digest(self, read: Callable[[int], None] | None = None) -> str:
        """SHA-256 (hex) of what the split says: all lengths, then all ids, as little-endian u4, in the order of ids.

        `read` is told the tokens of each row group; what it raises ends it.
        """
        digest = hashlib.sha256(self.lengths.astype("<u4").tobytes())
        for _, ids in self.groups():
            digest.update(ids.astype("<u4").tobytes())
            if read is not None:
                read(len(ids))
        return digest.hexdigest()

    def groups(self) -> Iterator[tuple[npt.NDArray[np.int64], TokenIds]]:
        """All sequences in the order of their ids, a row group at a time: as `read` returns them."""
        for number in range(len(self._group_starts) - 1):
            yield self._group(number)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the ids: u2 or u4."""
        with self._opened() as file:
            dtype: type[np.generic] = file.schema_arrow.field("input_ids").type.value_type.to_pandas_dtype()
        return np.dtype(dtype)

    @cached_property
    def _group_starts(self) -> npt.NDArray[np.int64]:
        """Id of the first sequence of each row group, and the number of sequences."""
        with self._opened() as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return np.cumsum([0, *rows], dtype=np.int64)

    def _group(self, number: int) -> tuple[npt.NDArray[np.int64], TokenIds]:
        if self._held is None or self._held[0] != number:
            with self._opened() as file:
                column = file.read_row_group(number, columns=["input_ids"]).column("input_ids").combine_chunks()
            offsets = column.offsets.to_numpy().astype(np.int64)
            start, stop = self._group_starts[number], self._group_starts[number + 1]
            if not np.array_equal(np.diff(offsets), self.lengths[start:stop]):
                raise InputError(
                    f"{self.path}: the lengths of sequences {start} to {stop} do not fit their ids; {_REDO}"
                )
            self._held = number, offsets - offsets[0], column.flatten().to_numpy()
        return self._held[1], self._held[2]

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """Opened for each read: an open file neither travels to another process nor survives a replaced folder."""
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except FileNotFoundError:
            raise InputError(f"{self.path} is not there; {_REDO}") from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.path} cannot be read ({error}); {_REDO}") from None


@dataclass(frozen=True)
class TokenStore:
    """The output of `tokenize`, opened for reading."""

    folder: Path
    vocabulary_size: int
    special_tokens: dict[str, int | None]
    """Ids of `pad`, `mask`, `unk`, `cls` and `sep`; None where the tokenizer has no such token."""
    special_ids: tuple[int, ...]
    """Ids that are never masked: all special tokens, the unknown one among them. Ascending."""
    longest: int
    """Tokens of the longest sequence, special tokens included."""
    _splits: dict[Split, SequenceSplit]
    _recorded_digests: dict[Split, str]

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """The store in `folder`. Raises `InputError` if there is none."""
        if not (folder / TOKENS).is_file():
            raise InputError(f"there are no tokens in {folder}; {_REDO}")
        try:
            content = json.loads((folder / TOKENS).read_text(encoding="utf-8"))
            return cls(
                folder=folder,
                vocabulary_size=content["vocabulary_size"],
                special_tokens=content["special_tokens"],
                special_ids=tuple(content["special_ids"]),
                longest=content["longest_sequence"],
                _splits={split: SequenceSplit(folder / f"{split}.parquet") for split in SPLITS},
                _recorded_digests={split: bytes.fromhex(content["splits"][split]["sha256"]).hex() for split in SPLITS},
            )
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / TOKENS} is not what tokenize writes ({error!r}); {_REDO}") from None

    @property
    def tokenizer_folder(self) -> Path:
        """A Hugging Face tokenizer folder."""
        return self.folder / TOKENIZER

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Occurrences of each id in the train split, i8 (V,)."""
        try:
            counts: npt.NDArray[np.int64] = pq.read_table(self.folder / COUNTS).column("count").to_numpy()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.folder / COUNTS} cannot be read ({error}); {_REDO}") from None
        return counts

    def split(self, name: Split) -> SequenceSplit:
        """The sequences of a split."""
        return self._splits[name]

    @property
    def recorded_digest(self) -> str:
        """SHA-256 (hex) of `tokens`, as in `content_digests`, of what `tokens.json` says: no data is read."""
        tokens = hashlib.sha256()
        for digest in self._recorded_digests.values():
            tokens.update(bytes.fromhex(digest))
        return tokens.hexdigest()

    def content_digests(self, read: Callable[[int], None] | None = None) -> dict[str, str]:
        """SHA-256 (hex) of `tokens` (the digests of the splits, in order) and of `tokenizer` (its files).

        Computed from the data itself; `read` as in `SequenceSplit.digest`. Raises `InputError` where that is no longer what
        `tokenize` wrote.
        """
        for name, split in self._splits.items():
            digest = split.digest(read)
            if digest != self._recorded_digests[name]:
                raise InputError(f"{split.path} is no longer what tokenize wrote (its digest differs); {_REDO}")
        return {"tokens": self.recorded_digest, "tokenizer": files_digest(self.tokenizer_folder)}


def files_digest(folder: Path) -> str:
    """SHA-256 (hex) of the names and contents of all files in a folder. Raises `InputError` if there are none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise InputError(f"{folder} has no files; {_REDO}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SplitFigures:
    """What `tokens.json` says of a split."""

    sequences: int
    tokens: int
    longest: int
    """Tokens of its longest sequence."""
    sha256: str
    """As `SequenceSplit.digest`."""


def write_description(
    folder: Path,
    *,
    vocabulary_size: int,
    special_tokens: dict[str, int | None],
    special_ids: tuple[int, ...],
    splits: Mapping[Split, SplitFigures],
) -> None:
    """Write `tokens.json`, last of all: what `TokenStore.open` needs, and per split sequences, tokens and digest."""
    write_json(
        folder / TOKENS,
        {
            "vocabulary_size": vocabulary_size,
            "special_tokens": special_tokens,
            "special_ids": list(special_ids),
            "longest_sequence": max(split.longest for split in splits.values()),
            "splits": {
                name: {"sequences": split.sequences, "tokens": split.tokens, "sha256": split.sha256}
                for name, split in splits.items()
            },
            "tokenizer_sha256": files_digest(folder / TOKENIZER),
        },
    )
