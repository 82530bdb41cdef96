"""The figures as tables, for the terminal and in Markdown: one for each family, since they do not have the same columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ladder.figures import Entry

Show = Callable[[Entry], str]


@dataclass(frozen=True)
class Table:
    """Header and rows, all as text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, values to the right."""
        rule = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [self.columns, rule, *self.rows]
        return f"**{self.title}**\n\n" + "".join("| " + " | ".join(line) + " |\n" for line in lines)


def tables(entries: Sequence[Entry]) -> Iterator[Table]:
    """Those that have rows; a column that would be empty, as without a student, is left out."""
    kl = {
        "KL T = 1, masked": _at("kl", "1.0", "masked"),
        "KL T = 1, unmasked": _at("kl", "1.0", "unmasked"),
        "KL T = 2, masked": _at("kl", "2.0", "masked"),
        "KL T = 2, unmasked": _at("kl", "2.0", "unmasked"),
    }
    gradients = {
        "gradient error T = 1": _at("gradient", "1.0", "all"),
        "gradient error T = 2": _at("gradient", "2.0", "all"),
        "gradient error T = 2, masked": _at("gradient", "2.0", "masked"),
    }
    speed = {"encode, k positions/s": _speed("encode"), "decode, k positions/s": _speed("decode")}
    cosine = {"1 - cosine": lambda entry: "" if entry.cosine_error is None else small(entry.cosine_error)}
    bucket = {f"bucket KL T = {t}": _at("bucket_kl", f"{t}.0", "all") for t in (1, 2)}
    mass = {f"mass kept T = 2, {kind}": _at("mass_kept", "2.0", kind, plain=True) for kind in ("masked", "unmasked")}
    ids = {f"ids, {kind}": _ids(kind) for kind in ("masked", "unmasked")}
    averages = {f"gradient error, mean of {sets}": _at("averaged", sets, "all", plain=True) for sets in ("4", "16")}
    sampled = {"gradient error": gradients["gradient error T = 2"]}
    sampled |= averages | {"gradient error, masked": gradients["gradient error T = 2, masked"]}
    columns: dict[tuple[str, ...], tuple[str, Mapping[str, Show]]] = {
        ("preset",): ("presets, as their default loss reads them", kl | bucket | cosine | gradients | speed),
        ("hidden",): ("hidden states through the frozen head", kl | cosine | gradients | speed),
        ("top_k", "threshold"): ("the most likely ids", {"tail": _tail} | ids | mass | kl | bucket | gradients | speed),
        ("draws", "head and tail"): ("ids drawn at T = 2", ids | sampled | {"encode, k positions/s": _speed("encode")}),
    }
    for families, (title, shown) in columns.items():
        chosen = [entry for entry in entries if entry.family in families]
        table = _table(title, {"B / position": _bytes, **shown}, chosen)
        if table.rows:
            yield table


def small(value: float) -> str:
    """Two significant digits: `0`, `1.2e-05`, `0.012`, `1.2`."""
    if value == float("inf"):
        return "∞"
    if abs(value) < 1e-12:  # rounding of sums in float64
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.2g}"


def _table(title: str, shown: Mapping[str, Show], entries: Sequence[Entry]) -> Table:
    filled = {name: cells for name, show in shown.items() if any(cells := [show(entry) for entry in entries])}
    names = [entry.name for entry in entries]
    rows = [list(row) for row in zip(names, *filled.values(), strict=True)]
    return Table(title, ["rung", *filled], rows)


def _bytes(entry: Entry) -> str:
    return f"{entry.total_bytes:,.1f}"


def _tail(entry: Entry) -> str:
    return entry.tail or ""


def _at(figure: str, *keys: str, plain: bool = False) -> Show:
    def show(entry: Entry) -> str:
        value: Any = getattr(entry, figure)
        for key in keys:
            value = value.get(key) if value else None
        if value is None:
            return ""
        return f"{value:.3f}" if plain else small(value)

    return show


def _ids(kind: str) -> Show:
    return lambda entry: f"{entry.ids[kind]:.1f}" if kind in entry.ids else ""


def _speed(which: str) -> Show:
    def show(entry: Entry) -> str:
        value = getattr(entry, which)
        return "" if value is None else f"{value / 1000:,.0f}"

    return show
