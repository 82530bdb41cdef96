"""A part of a cache's shards, for a job that does not know of the others: `I/N` takes every N-th shard, from the I-th on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """One of `parts`, counted from 1."""

    number: int
    parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.parts:
            raise ValueError(f"part {self} is none; expected I/N with 1 <= I <= N, e.g. 3/8")

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part called `I/N`. Raises `ValueError` for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None:
            raise ValueError(f"{text!r} is no part; expected I/N with 1 <= I <= N, e.g. 3/8")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.number}-of-{self.parts}"

    def of_all(self, items: Sequence[Item]) -> list[Item]:
        """This part's items. Dealt like cards, so that splits and variants are spread evenly over the parts."""
        return list(items[self.number - 1 :: self.parts])
