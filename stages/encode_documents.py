"""The job of `tokenize`: parts of the documents, encoded by any process.

A worker imports this module, and so neither torch nor transformers, which take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from stages.encoding import Encoder
from stages.errors import Interrupted
from stages.sequences import TOKENIZER
from stages.sharing import Place
from stages.token_parts import PartFigures, PartId, read_figures, write_part
from storage.layout import Split

PART_BYTES = 1 << 25
"""Text of a part: some seconds of work, and few enough parts that the merge reads long pieces of them."""
_BATCH_CHARACTERS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class EncodeDocuments:
    """Encodes parts of the documents into the work folder."""

    documents: Path
    work: Path
    encoder: Encoder
    seed: int
    at_once: int = 2
    """While Rust encodes one part on all cores, Python takes over the ids of the other and writes them."""

    @contextmanager
    def begin(self, place: Place) -> Iterator[Callable[[PartId], PartFigures]]:
        """Load the tokenizer."""
        backend = self.encoder.prepare(Tokenizer.from_file(str(self.work / TOKENIZER / "tokenizer.json")))

        def encode(part: PartId) -> PartFigures:
            found = read_figures(self.work, part)
            if found is not None:  # a cluster may start a task twice
                return found
            source, documents = self.documents / f"{part.split}.parquet", 0

            def batches() -> Iterator[list[str]]:
                nonlocal documents
                for texts in text_batches(source, range(part.first_group, part.end_group)):
                    if place.should_stop():
                        raise Interrupted(f"part {part} was dropped, as a stop was asked for")
                    documents += len(texts)
                    yield texts

            lengths, ids = self.encoder.sequences(backend, batches())
            return write_part(self.work, part, self.seed, documents, lengths, ids)

        yield encode


def parts_of(documents: Path, split: Split) -> Iterator[PartId]:
    """The row groups of a Parquet file of documents, as many to a part as make up its text."""
    metadata = pq.read_metadata(documents)
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    number = first = held = 0
    for group, size in enumerate(sizes):
        held += size
        if held >= PART_BYTES or group == len(sizes) - 1:
            yield PartId(split=split, number=number, first_group=first, end_group=group + 1)
            number, first, held = number + 1, group + 1, 0


def text_batches(documents: Path, groups: range | None = None) -> Iterator[list[str]]:
    """The texts of a Parquet file of documents, or of these row groups of it, about a million characters at a time."""
    texts: list[str] = []
    characters = 0
    with pq.ParquetFile(documents) as file:
        for batch in file.iter_batches(columns=["text"], batch_size=256, row_groups=groups):
            for text in batch.column(0).to_pylist():
                texts.append(text)
                characters += len(text)
                if characters >= _BATCH_CHARACTERS:
                    yield texts
                    texts, characters = [], 0
    if texts:
        yield texts
