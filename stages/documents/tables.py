"""Documents as Arrow tables: what is handed on between processes and written, without a Python object per document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import pyarrow as pa

from stages.config import CorpusConfig
from stages.documents.document import Document
from storage.layout import SPLITS, Split

SCHEMA = pa.schema([("document_id", pa.string()), ("text", pa.string()), ("split", pa.uint8())])
"""`split` is the place of the split in `SPLITS`."""
_TABLE_CHARACTERS = 4_000_000


def split_of(document_id: str, config: CorpusConfig) -> Split:
    """The split a document belongs to: a pure function of its id and `corpus.seed`, whatever else is in the corpus."""
    digest = blake2b(document_id.encode(), key=str(config.seed).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < config.test_fraction:
        return "test"
    return "validation" if share < config.test_fraction + config.validation_fraction else "train"


def document_tables(documents: Iterable[Document], config: CorpusConfig) -> Iterator[pa.Table]:
    """The documents in their order, some million characters at a time."""
    waiting: list[Document] = []
    characters = 0
    for document in documents:
        waiting.append(document)
        characters += len(document.text)
        if characters >= _TABLE_CHARACTERS:
            yield _table(waiting, config)
            waiting, characters = [], 0
    if waiting:
        yield _table(waiting, config)


def _table(documents: list[Document], config: CorpusConfig) -> pa.Table:
    splits = [SPLITS.index(split_of(document.document_id, config)) for document in documents]
    columns = [[document.document_id for document in documents], [document.text for document in documents], splits]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
