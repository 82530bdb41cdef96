"""Which pages are written from the code."""

from __future__ import annotations

from pathlib import Path

from docs_build import command_line, parameters
from pipeline.cli import cli

ROOT = Path(__file__).parents[1]


def written_from_code() -> dict[Path, str]:
    """Path -> content of each page of docs/reference that nobody writes by hand."""
    folder = ROOT / "docs" / "reference"
    return {
        folder / "cli.md": command_line.page(cli),
        folder / "parameters.md": parameters.page(
            (ROOT / "params.yaml").read_text(encoding="utf-8"), (ROOT / "dvc.yaml").read_text(encoding="utf-8")
        ),
    }
