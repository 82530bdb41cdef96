"""Stage `report`: one page that shows what a run did, for someone who would rather look than read."""

from __future__ import annotations

from stages.config import Config
from stages.context import Context
from stages.outputs import whole_folder
from stages.report_page.page import write_page
from stages.report_page.run_files import read_run_files


def run(config: Config, context: Context) -> None:
    """Write `report/`: `index.html`, self-contained, and its plots as files in `plots/` and `vector/`.

    The same files of a run give the same bytes. Raises `InputError`, naming the command that makes it, where a file of
    the run is missing or does not fit.
    """
    artefacts = context.artefacts
    files = read_run_files(artefacts, config.train.student)
    with whole_folder(artefacts.report) as folder:
        write_page(files, folder)
        plots = len(list((folder / "plots").glob("*.png")))
        size = (folder / "index.html").stat().st_size
    context.progress.summary("report", {"page": str(artefacts.report / "index.html"), "bytes": size, "plots": plots})
