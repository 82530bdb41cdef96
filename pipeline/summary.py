"""What a stage found, on stdout: a framed table in colour on a terminal, plain text with a row a line elsewhere.

Plain text is for files, logs and grep: no escape codes, no frame, nothing cut or wrapped but the headers of columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.align import Align
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.progress import show
from stages.context import Figure

UNLIMITED = 10_000
"""Columns of a line that nothing has to fit into."""
FRAME = 4
"""Columns that the frame and its padding take."""
PLUS_MINUS = " ± "
VALUE_STYLE = "cyan"
HEADER_RULE = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""Plain text: dashes below the header and nothing else."""


def print_summary(title: str, rows: Mapping[str, Figure]) -> None:
    """Print names and values in two columns below a title. A terminal folds what is wider than it."""
    console = _console()
    table = Table.grid(padding=(0, 0, 0, 2))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", justify="right", style=VALUE_STYLE)
    for name, value in rows.items():
        table.add_row(_cell(name, console), _cell(show(value), console))
    _print(console, title, table)


def print_descriptions(title: str, rows: Mapping[str, str]) -> None:
    """Print names and what they stand for in two columns below a title. A terminal folds what is wider than it."""
    console = _console()
    if not console.is_terminal:  # a grid would fill the lines up with spaces
        width = max(map(len, rows), default=0)
        console.print(
            _cell("\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows.items())]), console)
        )
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style=VALUE_STYLE)
    table.add_column()
    for name, text in rows.items():
        table.add_row(_cell(name, console), _cell(text, console))
    _print(console, title, table)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Figure]]) -> None:
    """Print one row per result: its name first, then a value for each other column.

    Headers are wrapped down to the width of the values. On a terminal that is still too narrow, `0.180 ± 0.002` takes
    two lines; values are never cut.
    """
    console = _console()
    cells = [[show(value) for value in row] for row in rows]
    table = _side_by_side(console, columns, cells)
    if _needed(console, table) > console.width - FRAME:
        stacked = [[value.replace(PLUS_MINUS, "\n" + PLUS_MINUS.lstrip()) for value in row] for row in cells]
        table = _side_by_side(console, columns, stacked)
        console.width = max(console.width, _needed(console, table) + FRAME)
    _print(console, title, table)


def _side_by_side(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The table with columns of values as narrow as they can be; what else there is goes to the names of the rows."""
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else HEADER_RULE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0, 0, 1),
        header_style="bold",
    )
    for index, header in enumerate(columns):
        values = [_cell(row[index], console) for row in rows]
        words = [Text(word) for word in header.split()]
        table.add_column(
            Align(_cell(header, console), "left" if index == 0 else "right", vertical="bottom"),
            justify="left" if index == 0 else "right",
            style="" if index == 0 else VALUE_STYLE,
            width=None if index == 0 else max((console.measure(text).maximum for text in [*values, *words]), default=1),
        )
    for row in rows:
        table.add_row(*(_cell(value, console) for value in row))
    return table


def _needed(console: Console, table: Table) -> int:
    """Columns below which values would be cut."""
    return console.measure(table, options=console.options.update(width=UNLIMITED)).minimum


def _console() -> Console:
    """Of stdout; where that is no terminal, one that knows neither colours nor the end of a line."""
    console = Console(highlight=False)
    if console.is_terminal and console.file.isatty():  # FORCE_COLOR alone makes no terminal of a file
        return console
    return Console(highlight=False, color_system=None, force_terminal=False, width=UNLIMITED)


def _cell(text: str, console: Console) -> Text:
    """Text in characters that stdout has: `PYTHONIOENCODING=ascii` must not end a run of hours with a traceback."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        text = text.replace("±", "+/-").encode(console.encoding, "replace").decode(console.encoding)
    return Text(text)


def _print(console: Console, title: str, table: Table) -> None:
    heading = _cell(title, console)
    if console.is_terminal:
        heading.stylize("bold")
        shown: list[RenderableType] = [
            Panel(table, title=heading, title_align="left", border_style="dim", expand=False)
        ]
    else:
        shown = [heading, Padding(table, (0, 0, 0, 2), expand=False)]
    console.print(*shown, sep="\n")
