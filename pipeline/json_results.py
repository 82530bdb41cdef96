"""`--json`: what a command would print as tables, as one JSON object on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.option_values import STDOUT
from stages.context import Figure, Progress
from stages.outputs import write_text


class JsonResults:
    """Gathers the tables and prints them when the command is done; after an error stdout stays empty.

    `{"command": ..., "results": [...]}`: a result has a `title`, and either `rows` by name or `columns` with a list of `rows`.
    """

    def __init__(self, command: str) -> None:
        self._command = command
        self._results: list[dict[str, Any]] = []

    def summary(self, title: str, rows: Mapping[str, Figure]) -> None:
        """Keep names and values."""
        self._results.append({"title": title, "rows": {name: _finite(value) for name, value in rows.items()}})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
        """Keep results side by side."""
        plain = [[_finite(value) for value in row] for row in rows]
        self._results.append({"title": title, "columns": list(columns), "rows": plain})

    def close(self) -> None:
        """Print."""
        results = {"command": self._command, "results": self._results}
        click.echo(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False))


def write_json_file(content: Any, target: str | None, progress: Progress, what: str) -> None:
    """Write `content` as JSON to the file `target` and say that `what` is there; `-`: to stdout; None: nowhere."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    if target == STDOUT:
        click.echo(text, nl=False)
    elif target is not None:
        write_text(Path(target), text)
        progress.message(f"{what} in {target}")


def _finite(value: Figure) -> Figure | None:
    """JSON has neither infinity nor NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
