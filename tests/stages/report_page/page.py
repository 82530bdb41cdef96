"""The report page as its reader sees it, without a browser."""

from html.parser import HTMLParser
from pathlib import Path

from stages import report
from stages.config import load_config
from stages.context import Artefacts, Context
from stages.report_page.tables import Table
from stages.report_page.units import NO_BREAK
from tests.tiny import tiny_params


class Page(HTMLParser):
    """A page: its source, its text, the cells of its tables, its attributes and ids."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.html = (folder / "index.html").read_text(encoding="utf-8")
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.ids: list[str] = []
        self._silent = 0
        self._in_cell = False
        self._table: list[list[str]] = []
        self.feed(self.html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self._silent += tag == "style"
        if tag == "table":
            self._table = self.tables[dict(attrs)["id"]] = []
        elif tag == "tr":
            self._table.append([])
        elif tag in {"td", "th"}:
            self._table[-1].append("")
            self._in_cell = True
        self.text += " "

    def handle_endtag(self, tag):
        self._silent -= tag == "style"
        self._in_cell &= tag not in {"td", "th"}
        self.text += " "

    def handle_data(self, data):
        if not self._silent:
            self.text += data
            if self._in_cell:
                self._table[-1][-1] = " ".join(f"{self._table[-1][-1]} {data}".split())


def make_report(artefacts: Artefacts) -> Page:
    report.run(load_config(tiny_params()), Context(artefacts=artefacts))
    return Page(artefacts.report)


def rows(table: Table) -> dict[str, list[str]]:
    """A table that is not yet on a page: what stands in a row's first cell, small print after a comma -> its other cells, likewise."""
    shown = [[f"{cell.text}, {cell.detail}" if cell.detail else cell.text for cell in row] for row in table.rows]
    return {row[0].replace(NO_BREAK, " "): [cell.replace(NO_BREAK, " ") for cell in row[1:]] for row in shown}
