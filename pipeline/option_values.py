"""What options are given as text, and what it means. Each raises `click.BadParameter` for what it does not understand."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from storage import Part


STDOUT = "-"
"""As the name of a file to write."""


def numbers(_context: click.Context, _option: click.Parameter, value: str) -> list[int]:
    """Integers above 0, separated by commas."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers from 1, such as 1,2,4,8")
    return [int(part) for part in parts]


def part_of(_context: click.Context, _option: click.Parameter, value: str | None) -> Part | None:
    """I/N: the I-th of N parts of a cache."""
    if value is None:
        return None
    from storage import Part

    try:
        return Part.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def folder_name(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """A name that can be that of a folder."""
    if value is not None and not re.fullmatch(r"\w[\w.-]*", value):
        raise click.BadParameter(f"{value!r} is no name for a folder: letters, digits, and then also . - _")
    return value


def prints_json(json_file: str | None) -> bool:
    """Whether a dry run is to print JSON. Raises `click.UsageError` for a file, as it writes none."""
    if json_file not in (None, STDOUT):
        raise click.UsageError("--dry-run writes nothing: give --json - for JSON on stdout")
    return json_file == STDOUT
