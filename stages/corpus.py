"""Stage `corpus`: documents from the chosen source, split by document into train, validation and test."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.config import ALGORITHMS, Config, CorpusConfig, to_plain
from stages.context import Context
from stages.documents import Document, stream_documents
from stages.documents.files import listed_files
from stages.documents.read_files import GROUP_BYTES, FileGroup, ReadFiles, documents_in, file_groups, read_tables
from stages.documents.tables import document_tables, split_of
from stages.errors import InputError
from stages.outputs import whole_folder
from stages.provenance import write_resolved
from stages.work_folder import shared_out, work_folder
from storage.layout import SPLITS, Split

__all__ = ["SCHEMA", "run", "split_of"]

SCHEMA = pa.schema([("document_id", pa.string()), ("text", pa.string())])
_ROW_GROUP_CHARACTERS = 8_000_000


def run(config: Config, context: Context) -> None:
    """Write `data/documents`: `train.parquet`, `validation.parquet` and `test.parquet`.

    Columns `document_id` and `text`, in the order of the source. Files are read by `context.runner`, and what was read is
    kept in a work folder until all are there. Raises `InputError` for a source that is missing or unusable and for a split
    without documents, and `LockedError` while another process reads the same files; then nothing is written.
    """
    with ExitStack() as stack:
        if config.corpus.source == "files":
            tables = _read_by_many(config.corpus, context, stack)
        else:  # closed, it ends its worker processes
            documents = stack.enter_context(closing(stream_documents(config.corpus, context)))
            tables = document_tables(_while_wanted(documents, context), config.corpus)
        folder = stack.enter_context(whole_folder(context.artefacts.documents))
        counts, characters = _write(_first(tables, config.corpus.max_documents), folder, context)
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


def _read_by_many(config: CorpusConfig, context: Context, stack: ExitStack) -> Iterator[pa.Table]:
    """The documents of local files, after all that are wanted have been read. The work folder is held by `stack`."""
    assert config.files is not None  # refused by CorpusConfig
    listed = listed_files(config.files, context.artefacts.project.absolute())
    files = listed.files
    if listed.left_out:
        context.progress.message(listed.says_left_out())
    parameters = to_plain(config)
    parameters["files"].pop("paths")  # where from; what was found there stands below
    spec = {"corpus": parameters, "algorithm": ALGORITHMS["corpus"], "group_bytes": GROUP_BYTES}
    work = stack.enter_context(work_folder("corpus", "the corpus", spec, {"files": _state(files)}, context))
    groups = list(file_groups(files))
    done = {group: count for group in groups if (count := documents_in(work, group)) is not None}
    context.progress.begin("read files", len(files), "files", done=sum(len(group.files) for group in done))
    missing = [group for group in groups if group not in done]
    if _wanted(groups, done, config.max_documents) is None:
        with closing(shared_out(ReadFiles(config=config, work=work), missing, context, work)) as outcomes:
            for group, count in outcomes:
                done[group] = count
                context.progress.advance(len(group.files), documents=sum(done.values()))
                if _wanted(groups, done, config.max_documents) is not None:
                    break
    wanted = _wanted(groups, done, config.max_documents)
    assert wanted is not None
    return (table for group in wanted for table in read_tables(work, group))


def _state(files: Mapping[str, Path]) -> str:
    """SHA-256 (hex) of the names, sizes and times of change of the files: to read them takes as long as the work itself."""
    digest = hashlib.sha256()
    for name, file in files.items():
        status = file.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _wanted(groups: list[FileGroup], done: Mapping[FileGroup, int], limit: int | None) -> list[FileGroup] | None:
    """The groups that hold the first `limit` documents (None: all); None where some of them are not read yet."""
    held = 0
    for number, group in enumerate(groups):
        if limit is not None and held >= limit:
            return groups[:number]
        if group not in done:
            return None
        held += done[group]
    return groups


def _while_wanted(documents: Iterable[Document], context: Context) -> Iterator[Document]:
    for document in documents:
        context.stop_if_asked("no document was written")
        yield document


def _first(tables: Iterable[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    """The first `limit` documents; None: all."""
    left = limit
    for table in tables:
        yield table if left is None else table[:left]
        if left is not None:
            left -= len(table)
            if left <= 0:
                return


def _write(tables: Iterable[pa.Table], folder: Path, context: Context) -> tuple[dict[Split, int], int]:
    counts: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    characters = 0
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(pq.ParquetWriter(folder / f"{split}.parquet", SCHEMA, compression="zstd"))
            for split in SPLITS
        }
        for split, group, size in _row_groups(tables, context):
            writers[split].write_table(group)
            counts[split] += len(group)
            characters += size
    return counts, characters


def _row_groups(tables: Iterable[pa.Table], context: Context) -> Generator[tuple[Split, pa.Table, int]]:
    """Documents of one split at a time, enough for a row group, and their characters: no more than a few are in memory."""
    waiting: dict[Split, list[pa.Table]] = {split: [] for split in SPLITS}
    characters: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for table in tables:
        context.stop_if_asked("no document was written")
        for number, split in enumerate(SPLITS):
            rest = table.filter(pc.equal(table["split"], number)).select(SCHEMA.names)
            while len(rest):
                # A row group ends with the document that makes it large enough, wherever the tables end.
                sizes = characters[split] + np.cumsum(pc.utf8_length(rest["text"]).to_numpy(), dtype=np.int64)
                full = int(np.searchsorted(sizes, _ROW_GROUP_CHARACTERS)) + 1
                waiting[split].append(rest[:full])
                characters[split] = int(sizes[min(full, len(rest)) - 1])
                if full <= len(rest):
                    yield split, pa.concat_tables(waiting[split]).combine_chunks(), characters[split]
                    waiting[split], characters[split] = [], 0
                rest = rest[full:]
    for split, group in waiting.items():
        if group:
            yield split, pa.concat_tables(group).combine_chunks(), characters[split]


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
