"""Matplotlib figures as files and as inline SVG. No pyplot: no global figures, no window system, the same bytes every time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

INK, FIRST, SECOND = "#1c1e21", "#0072b2", "#b34d00"
"""Text and axes, and the two series: blue and vermilion, which colour-blind people tell apart (after Okabe and Ito)."""

_PAPER = "#ffffff"

_IN_PAGE = {_PAPER: "none", INK: "currentColor", FIRST: "var(--first)", SECOND: "var(--second)"}
"""The page sets its own colours, for light and for dark."""

_STYLE: Any = {  # matplotlib's own type for it names every key
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.facecolor": _PAPER,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the layout is the same on every machine
    "font.size": 8.5,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

_PLAIN = FuncFormatter(lambda value, _: f"{value:,.6g}")
"""Tick labels as plain numbers: 0.05 and 2,000."""

LOG_RANGE = 5
"""A largest value this many times the smallest is drawn on a logarithmic axis."""

WIDTH = 4.4
"""Inches. Small, so that text is readable where the page shows one plot per row on a telephone."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawn figure: inline SVG for the page, and what it shows in a sentence."""

    name: str
    """Of its files, without ending, and of its ids in the page."""
    title: str
    caption: str
    svg: str


@contextmanager
def style() -> Iterator[None]:
    """The look of all plots, inside the block."""
    with mpl.rc_context(_STYLE):
        yield


def axes(title: str, x: str, y: str, *, height: float = 2.7) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, titled and labelled; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panel = figure.add_subplot()
    panel.set(title=title, xlabel=x, ylabel=y)
    panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    panel.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(_PLAIN)
    return figure, panel


def logarithmic(panel: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Make an axis logarithmic around `values`, with the more ticks per decade the fewer decades there are."""
    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = min(values) / 1.25, max(values) * 1.25
    panel.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN)


def finish(figure: Figure, folder: Path, *, name: str, title: str, caption: str) -> Plot:
    """Write `plots/name.png` (150 dpi) and `vector/name.svg`, on white, into `folder`, and make the SVG for the page.

    `dvc plots show` shows all images of a folder: PNG and SVG of the same plot in one would stand there twice.
    """
    png, svg = folder / "plots" / f"{name}.png", folder / "vector" / f"{name}.svg"
    for file in (png, svg):
        file.parent.mkdir(exist_ok=True)
    figure.draw_without_rendering()  # the layout, which is the larger part of the work: once for both files
    figure.set_layout_engine("none")
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(png, dpi=150, metadata={"Software": None})
        figure.savefig(svg, metadata={"Date": None})
    return Plot(name=name, title=title, caption=caption, svg=_for_page(svg.read_text(encoding="utf-8"), name))


def _for_page(svg: str, name: str) -> str:
    """Matplotlib's SVG as an element of a page: no header, ids of its own, the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'(<svg) height="[^"]*"(.*?) width="[^"]*"', r'\1 aria-hidden="true"\2', svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", _font, svg)
    for colour, variable in _IN_PAGE.items():
        svg = svg.replace(colour, variable)
    return svg.strip()


def _font(match: re.Match[str]) -> str:
    weight, size = match.groups()
    return f"font-size: {size}" + ("; font-weight: 600" if weight.strip() else "")
