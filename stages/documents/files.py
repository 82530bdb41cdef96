"""Documents of local files: plain text, JSON lines and Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.config import FilesConfig
from stages.documents.document import Document, usable
from stages.errors import InputError

_ROWS = {".jsonl", ".ndjson", ".json", ".parquet"}
_IN_FOLDERS = {".txt", ".text", ".md", *_ROWS}
"""What is taken from a folder. A file that is named, or that fits a pattern, is plain text unless it is one of `_ROWS`."""


@dataclass(frozen=True)
class Listed:
    """The files of a corpus."""

    files: dict[str, Path]
    """Name -> file, sorted by name. A name does not say where on this machine the files lie."""
    left_out: Counter[str]
    """How a name ends -> files in the named folders that end so, and are not taken for text."""

    def says_left_out(self) -> str:
        """What is left out, for people; empty where that is nothing."""
        if not self.left_out:
            return ""
        kinds = ", ".join(f"{suffix or 'no suffix'} ({count:,})" for suffix, count in self.left_out.most_common(5))
        more = f" and {len(self.left_out) - 5} more kinds" if len(self.left_out) > 5 else ""
        files = "1 file is" if self.left_out.total() == 1 else f"{self.left_out.total():,} files are"
        return f"{files} left out: {kinds}{more}; of a folder *{', *'.join(sorted(_IN_FOLDERS))} are read"


def listed_files(config: FilesConfig, project: Path) -> Listed:
    """The files of `corpus.files`.

    A name is relative to the project folder, or to the folder that holds the named file or folder if that lies elsewhere.
    Raises `InputError` for a path without files, and where rows are to be read and the text column is not named.
    """
    listed = _listed(config.paths, project)
    for name, file in listed.files.items():
        if file.suffix in _ROWS and config.text_column is None:
            columns = ", ".join(_columns(file, name))
            raise InputError(
                f"corpus.files.text_column is null; expected the column of {name} that holds the text, one of: {columns}"
            )
    return listed


def file_documents(name: str, file: Path, config: FilesConfig, *, refuse_empty: bool) -> Iterator[Document]:
    """The documents of a file, in its order; ids are `name` or `name:number`, counted from 1.

    Raises `InputError` for a file that is not UTF-8, a line that is not JSON, a missing text column, and an empty
    document if `refuse_empty`.
    """
    whole = file.suffix not in _ROWS and config.document == "file"
    number = 0
    for number, text in enumerate(_texts(file, name, config), start=1):
        if usable(text, refuse_empty, name, number):
            yield Document(name if whole else f"{name}:{number}", str(text))
    if number == 0 and refuse_empty:
        raise InputError(
            f"{name} is empty; take it out of corpus.files.paths, or set corpus.empty_documents to skip to pass over it"
        )


def _listed(paths: tuple[str, ...], project: Path) -> Listed:
    files: dict[str, Path] = {}
    others: set[Path] = set()
    for pattern in paths:
        found = _matches(pattern, project)
        if not found:
            raise InputError(f"corpus.files.paths: {pattern} is not there (looked in {project}); correct the path")
        for path in found:
            base = project if path.is_relative_to(project) else path.parent
            folder = path.is_dir()
            for file in filter(Path.is_file, sorted(path.rglob("*")) if folder else [path]):
                if folder and file.suffix not in _IN_FOLDERS:
                    others.add(file)
                    continue
                name = file.relative_to(base).as_posix()
                if files.setdefault(name, file) != file:
                    raise InputError(f"corpus.files.paths: {files[name]} and {file} are both called {name}; rename one")
    if not files:
        raise InputError(
            f"corpus.files.paths: no text in {', '.join(paths)}; expected files named *{', *'.join(sorted(_IN_FOLDERS))}"
        )
    # A file that is named is read whatever its folder's others are.
    return Listed(dict(sorted(files.items())), Counter(file.suffix for file in others.difference(files.values())))


def _matches(pattern: str, project: Path) -> list[Path]:
    path = project / pattern
    if path.exists():
        return [path]
    root = Path(path.anchor)
    return sorted(root.glob(str(path.relative_to(root))))


def _texts(file: Path, name: str, config: FilesConfig) -> Iterator[object]:
    if file.suffix == ".parquet":
        yield from _parquet_rows(file, name, config.text_column)
    elif file.suffix in _ROWS:
        yield from _json_rows(file, name, config.text_column)
    elif config.document == "file":
        yield "\n".join(_lines(file, name))
    elif config.document == "line":
        yield from _lines(file, name)
    else:
        yield from _paragraphs(_lines(file, name))


def _lines(file: Path, name: str) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends; split at newlines only, so that they are what editors count."""
    start = 0
    with file.open("rb") as stream:
        for line in stream:
            try:
                yield line.decode("utf-8-sig" if start == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                if b"\0" in line:
                    raise InputError(
                        f"{name} is no text: it has a NUL byte; expected text in UTF-8, JSON lines or Parquet (corpus.files)"
                    ) from None
                raise InputError(
                    f"{name} is not UTF-8: byte {start + error.start} is 0x{line[error.start]:02x}; "
                    f"convert it, e.g. `iconv -f latin1 -t utf-8 FILE > NEW_FILE`"
                ) from None
            start += len(line)


def _paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Runs of lines between blank lines."""
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _json_rows(file: Path, name: str, column: str | None) -> Iterator[object]:
    for number, row in enumerate(_json_objects(file, name), start=1):
        if column not in row:
            raise InputError(_missing_column(f"{name}, line {number}", column, row))
        yield row[column]


def _json_objects(file: Path, name: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(_lines(file, name), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{name}, line {number}: expected a JSON object, found {line[:40]!r} ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}, line {number}: expected a JSON object, found {type(row).__name__}")
        yield row


def _parquet_rows(file: Path, name: str, column: str | None) -> Iterator[object]:
    with _parquet(file, name) as parquet:
        if column not in parquet.schema_arrow.names:
            raise InputError(_missing_column(name, column, parquet.schema_arrow.names))
        for batch in parquet.iter_batches(columns=[column], batch_size=1024):
            yield from batch.column(0).to_pylist()


@contextmanager
def _parquet(file: Path, name: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name} is no readable Parquet file ({error}); write it anew, or take it out of corpus.files.paths"
        ) from None


def _columns(file: Path, name: str) -> list[str]:
    """The columns of a file of rows: Parquet's schema, or the keys of the first line."""
    if file.suffix == ".parquet":
        with _parquet(file, name) as parquet:
            return list(parquet.schema_arrow.names)
    return list(next(_json_objects(file, name), {}))


def _missing_column(where: str, column: str | None, existing: list[str] | dict[str, object]) -> str:
    return f"{where}: no column {column!r}, which corpus.files.text_column names; its columns are {', '.join(existing)}"
