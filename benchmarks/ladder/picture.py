"""Bytes against error, two panels: divergence from the teacher, and the gradient's error where a student was there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ladder.figures import Entry
from stages.report_page.drawing import style

_LOOKS = {
    "hidden": ("#0072b2", "o", "hidden state, through the head"),
    "rest": ("#b34d00", "s", "most likely ids, rest as one bucket"),
    "unigram": ("#cc79a7", "v", "most likely ids, rest by frequency"),
    "renormalise": ("#777777", "x", "most likely ids, both sides renormalised"),
    "teacher renormalised": ("#1c1e21", "+", "most likely ids, teacher renormalised"),
    "draws": ("#009e73", "D", "ids drawn, one set"),
    "preset": ("#e6a000", "*", "preset"),
}
"""Colour, marker and name by what stands for the distribution; colours after Okabe and Ito."""


def draw(entries: Sequence[Entry], file: Path, title: str) -> None:
    """Write the picture; the ending of `file` chooses its format."""
    gradients = any(entry.gradient for entry in entries)
    with style():
        figure = Figure(figsize=(11.6 if gradients else 6, 5.4), layout="constrained")
        panels = figure.subplots(1, 2 if gradients else 1, squeeze=False)[0]
        _panel(panels[0], entries, lambda entry: entry.kl.get("2.0", {}).get("all"))
        panels[0].set_ylabel("KL(teacher || rebuilt) at T = 2, whole vocabulary, nats")
        if gradients:
            _panel(panels[1], entries, lambda entry: entry.gradient.get("2.0", {}).get("all"))
            panels[1].set_ylabel("relative error of the encoder's gradient at T = 2, one batch")
        handles: dict[str, object] = {}
        for panel in panels:
            handles |= {name: handle for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)


def _look(entry: Entry) -> str:
    if entry.family in ("hidden", "preset"):
        return entry.family
    return "draws" if entry.family in ("draws", "head and tail") else str(entry.tail)


def _label(entry: Entry) -> str:
    """Short; one label serves all tails of a rung."""
    if entry.tail not in (None, "rest"):
        return ""
    for long, short in (
        ("hidden int8, groups of ", "int8/"),
        ("hidden int8, a scale per row", "int8/row"),
        ("hidden ", ""),
        (" at T = ", "@"),
        (", grid 1/8", ""),
        (" draws outside", " drawn"),
    ):
        entry_name = entry.name if long is None else entry.name
        if long in entry_name:
            return entry_name.replace(long, short).replace(", grid 1/8", "")
    return entry.name


def _panel(panel: Axes, entries: Sequence[Entry], value: Callable[[Entry], float | None]) -> None:
    for look, (colour, marker, name) in _LOOKS.items():
        points = [
            (entry.total_bytes, error, _label(entry))
            for entry in entries
            if _look(entry) == look and (error := value(entry)) is not None and 1e-12 < error < float("inf")
        ]
        if not points:
            continue
        size = 90 if marker == "*" else 26
        panel.scatter(*zip(*[point[:2] for point in points], strict=True), s=size, c=colour, marker=marker, label=name)
        for x, y, text in points:
            place = (5, -9) if look == "preset" else (5, 3)
            panel.annotate(text, (x, y), xytext=place, textcoords="offset points", fontsize=6.5, color=colour)
    panel.set(xscale="log", yscale="log", xlabel="bytes per position on disk, with tokens and statistics")
    panel.margins(x=0.12)
