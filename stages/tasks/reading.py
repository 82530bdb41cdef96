"""Rows of tables: TSV as GLUE has it, CSV, Parquet, and datasets of the hub."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError

TABLES = (".tsv", ".csv", ".parquet")


def read_table(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a CSV or Parquet file, which has at least these columns. Raises `InputError`."""
    rows = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    for number, row in enumerate(rows, start=1):
        missing = [name for name in columns if row.get(name) is None]
        if missing:
            raise InputError(
                f"{path}, row {number}: nothing in the column {missing[0]}; expected the columns {', '.join(columns)}, "
                f"found {', '.join(map(str, row))}"
            )
        yield row


def read_glue_tsv(
    path: Path,
    columns: Sequence[str],
    *,
    header: Sequence[str] | None = None,
    skip_short: bool = False,
    message: Callable[[str], None],
) -> Iterator[Mapping[str, str]]:
    """The rows of a TSV file of GLUE's: no quoting, one line per row, `header` where the file has no line of its own for that.

    Raises `InputError` for a row that lacks one of `columns`; `skip_short`: leaves it out, and tells `message` how many.
    """
    skipped = 0
    with _opened(path) as lines:
        # A quotation mark is a letter here; GLUE's own files have single ones.
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = list(header) if header is not None else next(rows, [])
        absent = [name for name in columns if name not in names]
        if absent:
            raise InputError(
                f"{path} has no column {absent[0]!r} in its first line; expected {', '.join(columns)}, as in GLUE's own file; "
                f"found {', '.join(names) or 'nothing'}"
            )
        for fields in rows:
            row = dict(zip(names, fields, strict=False))
            if all(name in row for name in columns):
                yield row
            elif skip_short:
                skipped += 1
            else:
                raise InputError(
                    f"{path}, line {rows.line_num}: {len(fields)} columns; expected {len(names)}, separated by tabs"
                )
    if skipped:
        message(f"{path.name}: left out {skipped:,} rows that have too few columns")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, but for empty ones. Raises `InputError`."""
    with _opened(path) as lines:
        return [text for line in lines if (text := line.strip())]


def hub_rows(name: str, configuration: str, split: str, revision: str, key: str) -> Any:
    """A split of a dataset of the hub at a pinned revision, downloaded once into the cache of the `datasets` library.

    Raises `InputError`; `key` is the parameter that names the dataset.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return load_dataset(name, configuration, split=split, revision=revision)
    except (DatasetsError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{key}: cannot load {name}@{revision} (configuration {configuration}, split {split}): {reason}; check the name, "
            "the revision and the network, or set finetune.source: files and finetune.folder"
        ) from error


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with _opened(path) as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); fetch or write it anew"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    """A text file; what is not UTF-8, or no table, is an `InputError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # MRPC's files begin with a byte order mark
            yield file
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} is no table in UTF-8 ({error}); convert it, e.g. `iconv -f latin1 -t utf-8`"
        ) from error
