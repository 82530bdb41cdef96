"""The job of `corpus` for local files: groups of files, read by any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config import CorpusConfig
from stages.documents.document import Document
from stages.documents.files import file_documents
from stages.documents.tables import SCHEMA, document_tables
from stages.errors import Interrupted
from stages.sharing import Place
from stages.work_folder import kept_part, whole_part

GROUP_BYTES = 1 << 25
"""Of a group of files, at least: small files are read together, a large one alone."""
_DOCUMENTS = "documents.parquet"


class FileGroup(NamedTuple):
    """Files that follow each other: the unit of work."""

    number: int
    files: tuple[tuple[str, Path], ...]
    """Name and place of each."""

    def __str__(self) -> str:
        return f"files-{self.number:06}"


def file_groups(files: Mapping[str, Path]) -> Iterator[FileGroup]:
    """All files, in their order, in groups."""
    number = held = 0
    group: list[tuple[str, Path]] = []
    for name, file in files.items():
        group.append((name, file))
        held += file.stat().st_size
        if held >= GROUP_BYTES:
            yield FileGroup(number, tuple(group))
            number, held, group = number + 1, 0, []
    if group:
        yield FileGroup(number, tuple(group))


@dataclass(frozen=True, kw_only=True)
class ReadFiles:
    """Reads groups of files into the work folder."""

    config: CorpusConfig
    work: Path
    at_once: int = 2
    """One is compressed while the other is parsed."""

    @contextmanager
    def begin(self, place: Place) -> Iterator[Callable[[FileGroup], int]]:
        """Nothing to load."""

        def documents_of(group: FileGroup) -> Iterator[Document]:
            assert self.config.files is not None
            refuse_empty = self.config.empty_documents == "refuse"
            for name, file in group.files:
                for document in file_documents(name, file, self.config.files, refuse_empty=refuse_empty):
                    if place.should_stop():
                        raise Interrupted(f"{name} was dropped, as a stop was asked for")
                    yield document

        def read(group: FileGroup) -> int:
            found = documents_in(self.work, group)
            if found is not None:  # a cluster may start a task twice
                return found
            with whole_part(self.work / str(group)) as (folder, figures):
                figures["documents"] = 0
                with pq.ParquetWriter(folder / _DOCUMENTS, SCHEMA, compression="zstd") as writer:
                    for table in document_tables(islice(documents_of(group), self.config.max_documents), self.config):
                        writer.write_table(table)
                        figures["documents"] += len(table)
            return figures["documents"]

        yield read


def documents_in(work: Path, group: FileGroup) -> int | None:
    """How many documents a group of files gave; None where it has not been read."""
    figures = kept_part(work / str(group))
    return None if figures is None else figures["documents"]


def read_tables(work: Path, group: FileGroup) -> Iterator[pa.Table]:
    """The documents of a group of files, some of them at a time."""
    with pq.ParquetFile(work / str(group) / _DOCUMENTS) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)
