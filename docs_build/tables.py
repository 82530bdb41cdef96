"""Markdown for the pages that are written from the code."""

from __future__ import annotations

import re


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table. A `|` within a cell is escaped, as GitHub and mkdocs both want it, in code too."""
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, *rows)]
    lines.insert(1, " | ".join("---" for _ in head))
    return "\n".join(f"| {line} |" for line in lines)


def linked(text: str) -> str:
    """Text from the code, with the pages and the format's document that it names as links from docs/reference."""
    text = re.sub(r"\bdocs/([\w-]+\.md)\b", r"[\1](../\1)", text)
    return re.sub(r"\bstorage/FORMAT\.md\b", "[storage/FORMAT.md](../../storage/FORMAT.md)", text)
