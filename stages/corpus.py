"""Stage `corpus`: documents from the chosen source, split by document into train, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config import Config, CorpusConfig
from stages.context import Context
from stages.documents import Document, read_documents
from stages.errors import InputError
from stages.outputs import whole_folder
from stages.provenance import write_resolved
from storage.layout import SPLITS, Split

SCHEMA = pa.schema([("document_id", pa.string()), ("text", pa.string())])
_ROW_GROUP_CHARACTERS = 8_000_000


def run(config: Config, context: Context) -> None:
    """Write `data/documents`: `train.parquet`, `validation.parquet` and `test.parquet`.

    Columns `document_id` and `text`, in the order of the source. Raises `InputError` for a source that is missing or
    unusable and for a split without documents; then nothing is written.
    """
    with (
        whole_folder(context.artefacts.documents) as folder,
        closing(read_documents(config.corpus, context)) as documents,  # closed, it ends its worker processes
    ):
        wanted = islice(documents, config.corpus.max_documents)
        counts, characters = _write(wanted, folder, config.corpus, context)
        _require_documents(counts, config.corpus)
        write_resolved(folder, config, "corpus")
    context.progress.summary(
        "corpus",
        {
            "source": config.corpus.source,
            **{f"{split} documents": counts[split] for split in SPLITS},
            "characters": characters,
        },
    )


def split_of(document_id: str, config: CorpusConfig) -> Split:
    """The split a document belongs to: a pure function of its id and `corpus.seed`, whatever else is in the corpus."""
    digest = blake2b(document_id.encode(), key=str(config.seed).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < config.test_fraction:
        return "test"
    return "validation" if share < config.test_fraction + config.validation_fraction else "train"


def _write(
    documents: Iterable[Document], folder: Path, config: CorpusConfig, context: Context
) -> tuple[dict[Split, int], int]:
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    characters = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", SCHEMA, compression="zstd"))
            for split in SPLITS
        }
        for split, group in _row_groups(documents, config, context):
            writers[split].write_table(pa.Table.from_pylist([document._asdict() for document in group], SCHEMA))
            counts[split] += len(group)
            characters += sum(len(document.text) for document in group)
    return counts, characters


def _row_groups(
    documents: Iterable[Document], config: CorpusConfig, context: Context
) -> Iterator[tuple[Split, list[Document]]]:
    """Documents of one split at a time, enough for a row group: no more than a few of them are in memory."""
    waiting: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    characters: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for document in documents:
        context.stop_if_asked("no document was written")
        split = split_of(document.document_id, config)
        waiting[split].append(document)
        characters[split] += len(document.text)
        if characters[split] >= _ROW_GROUP_CHARACTERS:
            yield split, waiting[split]
            waiting[split], characters[split] = [], 0
    for split, group in waiting.items():
        if group:
            yield split, group


def _require_documents(counts: dict[Split, int], config: CorpusConfig) -> None:
    total = sum(counts.values())
    if total == 0:
        raise InputError(f"the corpus has no documents; corpus.{config.source} must name a source that holds text")
    for split, count in counts.items():
        if count == 0:
            advice = "a larger corpus, or smaller documents (corpus.files.document: paragraph)"
            if split != "train":
                advice += f", or a larger corpus.{split}_fraction"
            raise InputError(f"the {split} split is empty: none of {total} documents fell into it; expected {advice}")
