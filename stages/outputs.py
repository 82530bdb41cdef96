"""Outputs that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.files import TEMPORARY, discard, move_folder, sync_tree, write_durably


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    What stood there before stays until then. A process killed between the two renames leaves the old one under a
    temporary name and the new one whole under another: the next start makes the output anew.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (target.with_name(f"{TEMPORARY}{kind}-{target.name}") for kind in ("new", "old"))
    discard(draft)
    draft.mkdir()
    try:
        yield draft
        sync_tree(draft)
        discard(old)
        if target.exists():
            move_folder(target, old)
        move_folder(draft, target)
    finally:
        discard(draft)
        if target.exists():
            discard(old)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table with a header, whole or not at all; keys of a row that are no column are left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, text.encode("utf-8"))
