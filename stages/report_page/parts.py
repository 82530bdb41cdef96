"""What is shown together in one place of the page."""

from __future__ import annotations

from dataclasses import dataclass

from stages.report_page.drawing import Plot
from stages.report_page.tables import Table


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tables and plots of one file, and what a reader must know before believing them."""

    notes: list[str]
    tables: list[Table]
    plots: list[Plot]
