"""The figures as tables, for the terminal and in Markdown: one for each kind, since they do not have the same columns."""

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
    averages = {f"mean of {sets}": _at("averaged", sets, "all", plain=True) for sets in ("4", "16")}
    one = "gradient error T = 2"
    kept = [entry for entry in entries if entry.family in ("top_k", "threshold") and entry.tail == "rest"]
    tailed = {entry.name for entry in entries if entry.tail == "unigram"}
    parts: list[tuple[str, Mapping[str, Show], list[Entry]]] = [
        ("presets, as their default loss reads them", kl | cosine | gradients | speed, _of(entries, "preset")),
        ("hidden states through the frozen head", kl | cosine | gradients | speed, _of(entries, "hidden")),
        (
            "the most likely ids: how many and how coded, the rest as one bucket",
            ids | mass | kl | bucket | {one: gradients[one]} | speed,
            kept,
        ),
        (
            "the most likely ids: what stands for the rest",
            {"tail": lambda entry: entry.tail or ""} | kl | gradients,
            [entry for entry in entries if entry.name in tailed],
        ),
        (
            "ids drawn at T = 2",
            ids | {one: gradients[one]} | averages | {"T = 2, masked": gradients[f"{one}, masked"]} | speed,
            _of(entries, "draws", "head and tail"),
        ),
    ]
    for title, shown, chosen in parts:
        table = _table(title, {"B / position": _bytes, **shown}, chosen)
        if table.rows:
            yield table


def _of(entries: Sequence[Entry], *families: str) -> list[Entry]:
    return [entry for entry in entries if entry.family in families]


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
    return f"{entry.total_bytes:,.0f}"


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
