"""Bytes against error, two panels: divergence from the teacher, and the gradient's error where a student was there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ladder.figures import Entry
from stages.report_page.drawing import style

Value = Callable[[Entry], float | None]

_LOOKS = {
    "hidden": ("#0072b2", "o", "hidden state, through the head"),
    "top_k": ("#b34d00", "s", "most likely ids, rest as one bucket"),
    "threshold": ("#b34d00", "^", "ids above a threshold, rest as one bucket"),
    "unigram": ("#cc79a7", "v", "most likely ids, rest by frequency"),
    "renormalise": ("#777777", "x", "most likely ids, both sides renormalised"),
    "teacher renormalised": ("#1c1e21", "+", "most likely ids, teacher renormalised"),
    "draws": ("#009e73", "D", "ids drawn, one set"),
    "preset": ("#e6a000", "*", "preset"),
}
"""Colour, marker and name by what stands for the distribution; colours after Okabe and Ito."""

_PLACES: dict[str, tuple[tuple[int, int], str]] = {
    "hidden float": ((0, -12), "center"),
    "hidden": ((-6, -3), "right"),
    "top_k": ((0, -12), "center"),
    "threshold": ((0, 6), "center"),
    "above": ((0, 6), "center"),
    "preset": ((8, -3), "left"),
}
"""Where labels stand from their points, in typographic points, so that they do not meet."""

_SHORTER = (
    ("hidden int8, groups of ", "int8/"),
    ("hidden int8, a scale per row", "int8/row"),
    ("hidden ", ""),
    (", grid 1/8", ""),
    (" at T = ", "\nT = "),
    ("p >= ", "p ≥ "),
    ("0.0001", "10⁻⁴"),
    ("0.001", "10⁻³"),
    ("0.01", "10⁻²"),
    (" draws outside", ""),
)


def draw(entries: Sequence[Entry], file: Path, title: str) -> None:
    """Write the picture; the ending of `file` chooses its format."""
    gradients = any(entry.gradient for entry in entries)
    with style():
        figure = Figure(figsize=(11.6 if gradients else 6, 6), layout="constrained")
        panels = figure.subplots(1, 2 if gradients else 1, squeeze=False)[0]
        _panel(panels[0], entries, lambda entry: entry.kl.get("2.0", {}).get("all"))
        panels[0].set_ylabel("KL(teacher || rebuilt) at T = 2, whole vocabulary, nats")
        if gradients:
            _panel(panels[1], entries, lambda entry: entry.gradient.get("2.0", {}).get("all"))
            _add_averages(panels[1], entries)
            panels[1].set_ylabel("relative error of the encoder's gradient at T = 2, one batch")
        handles: dict[str, Artist] = {}
        for panel in panels:
            handles |= {name: handle for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)}
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.savefig(file, dpi=110, metadata={"Date": None} if file.suffix == ".svg" else None)


def _look(entry: Entry) -> str:
    if entry.family == "head and tail":
        return "draws"
    return entry.family if entry.tail in (None, "rest") else entry.tail


def _label(entry: Entry) -> str:
    """Short; the codings of the same ids lie on top of each other, so one of them is named, and one tail of it."""
    if entry.tail not in (None, "rest") or (entry.family == "top_k" and not entry.name.endswith("grid 1/8")):
        return ""
    name = entry.name
    for long, short in _SHORTER:
        name = name.replace(long, short)
    return name


def _write(panel: Axes, text: str, point: tuple[float, float], place: str) -> None:
    offset, side = _PLACES.get(place, ((0, -12), "center"))
    colour = _LOOKS[{"hidden float": "hidden", "above": "draws"}.get(place, place)][0]
    panel.annotate(text, point, xytext=offset, textcoords="offset points", ha=side, fontsize=6.5, color=colour)


def _panel(panel: Axes, entries: Sequence[Entry], value: Value) -> None:
    for look, (colour, marker, name) in _LOOKS.items():
        points = _points([entry for entry in entries if _look(entry) == look], value)
        if not points:
            continue
        x, y, _ = zip(*points, strict=True)
        panel.scatter(x, y, s=90 if marker == "*" else 24, c=colour, marker=marker, label=name)
        for bytes_, error, text in points if look != "draws" else ():  # those are written at their other end
            _write(panel, text, (bytes_, error), "hidden float" if "float" in text and look == "hidden" else look)
    panel.set(xscale="log", yscale="log", xlabel="bytes per position on disk, with tokens and statistics")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(x=0.14, y=0.08)


def _add_averages(panel: Axes, entries: Sequence[Entry]) -> None:
    """Hollow marks below those of the draws: what is left of the error after sixteen independent sets."""
    draws = [entry for entry in entries if _look(entry) == "draws"]
    colour, marker, _ = _LOOKS["draws"]
    for entry in draws:
        one, mean = entry.averaged["1"]["all"], entry.averaged["16"]["all"]
        panel.plot([entry.total_bytes] * 2, [one, mean], color=colour, linewidth=0.6)
        label = "ids drawn, mean of 16 sets" if entry is draws[0] else None
        end, place = (mean, "draws") if entry.family == "draws" else (one, "above")
        _write(panel, _label(entry), (entry.total_bytes, end), place)
        panel.scatter(
            entry.total_bytes, mean, s=24, facecolors="white", edgecolors=colour, marker=marker, zorder=3, label=label
        )


def _points(entries: Sequence[Entry], value: Value) -> list[tuple[float, float, str]]:
    """Bytes, error and label, where the error is neither 0 (but for rounding) nor infinite."""
    found = [(entry.total_bytes, value(entry), _label(entry)) for entry in entries]
    return [(x, y, text) for x, y, text in found if y is not None and 1e-12 < y < float("inf")]
