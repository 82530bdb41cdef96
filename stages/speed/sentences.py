"""What speed is measured on: sentences as token ids, tokenized before any clock runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, ones_like, tensor
from torch.nn.utils.rnn import pad_sequence

from stages.errors import InputError
from stages.tasks.glue import TEXT_COLUMNS
from stages.tasks.reading import read_glue_tsv
from storage import CacheReader, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_SEQUENCES = 1_500
"""That are taken of a cached split, evenly spaced: as many as STS-B's dev set has pairs."""


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Token ids, and where they come from."""

    source: str
    ids: tuple[tuple[int, ...], ...]
    pad_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return sum(map(len, self.ids))

    @property
    def longest(self) -> int:
        """Tokens of the longest one."""
        return max(map(len, self.ids))

    def batches(self, size: int) -> list[tuple[int, ...]]:
        """Numbers of the sentences of each batch: those of like length together, so that little is padded, the shortest first."""
        order = sorted(range(len(self)), key=lambda number: len(self.ids[number]))
        return [tuple(order[start : start + size]) for start in range(0, len(order), size)]

    def batch(self, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """`input_ids` and `attention_mask`, int64 (sentences, tokens of the longest), padded on the right."""
        rows = [tensor(self.ids[number]) for number in numbers]
        padded = pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        return padded, pad_sequence([ones_like(row) for row in rows], batch_first=True)


def read_sentences(file: Path, tokenizer: PreTrainedTokenizerBase, most_tokens: int | None) -> Sentences:
    """Sentences of a file, tokenized as a model reads them: pairs as one sequence, cut to `most_tokens`.

    `*.tsv` is a table in GLUE's layout: a header with the columns of one of its tasks, and no quoting. Any other file has a
    sentence a line. Raises `InputError` where it is missing or holds no sentence.
    """
    try:
        # MRPC's files begin with a byte order mark.
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"no sentences could be read from {file} ({error}); expected a text file with a sentence a line, or a .tsv in GLUE's layout"
        ) from error
    texts = (
        _columns(file, lines[0].split("\t"))
        if lines and file.suffix == ".tsv"
        else [(line,) for line in lines if line.strip()]
    )
    encoded = (
        tokenizer(
            *(list(column) for column in zip(*texts, strict=True)),
            truncation=most_tokens is not None,
            max_length=most_tokens,
            return_attention_mask=False,
        )["input_ids"]
        if texts
        else []
    )
    ids = tuple(tuple(row) for row in encoded if row)
    if not ids:
        raise InputError(f"{file} holds no sentence; expected one a line, or a .tsv in GLUE's layout")
    return Sentences(source=file.name, ids=ids, pad_id=_pad_id(tokenizer.pad_token_id))


def _columns(file: Path, header: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts of a table of one of GLUE's tasks."""
    for texts in TEXT_COLUMNS:
        if set(texts) <= set(header):
            return [tuple(row[name] for name in texts) for row in read_glue_tsv(file, texts, message=lambda _: None)]
    expected = "; ".join(" and ".join(texts) for texts in TEXT_COLUMNS)
    raise InputError(f"{file} has the columns {', '.join(header)}; expected those of a task of GLUE: {expected}")


def cached_sentences(reader: CacheReader, split: Split) -> Sentences:
    """The sequences of a cached split as they were before masking; `MAX_SEQUENCES` of them, evenly spaced, where there are more."""
    found: list[tuple[int, ...]] = []
    for shard in reader.shards(split):
        arrays = reader.load(shard, targets=())
        rows = np.split(arrays.original_ids, arrays.sequence_offsets[1:-1].astype(np.int64))
        found.extend(tuple(row.tolist()) for row in rows)
    chosen = np.linspace(0, len(found) - 1, min(len(found), MAX_SEQUENCES)).round().astype(int)
    return Sentences(
        source=f"{split} split of the cache",
        ids=tuple(found[number] for number in chosen),
        pad_id=_pad_id(reader.description.pad_id),
    )


def _pad_id(pad_id: int | None) -> int:
    """Any id will do where a tokenizer has none for it: padding is masked."""
    return 0 if pad_id is None else pad_id
