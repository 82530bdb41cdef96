"""One self-contained HTML page: nothing in it is loaded from anywhere, and there is no script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.config import to_plain
from stages.report_page import closeness, content, dots, plots, published, tables
from stages.report_page.downstream import downstream_part
from stages.report_page.drawing import Plot
from stages.report_page.parts import Part
from stages.report_page.run_files import RunFiles
from stages.report_page.speed_on_text import speed_part
from stages.report_page.tables import Table
from stages.report_page.variation import variation_part
from storage import differing_fields


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The table of `pipeline compare`, its plots, and what is to be known about it."""

    table: Table
    plots: list[Plot]
    notes: list[str]
    variation: Part | None


def write_page(files: RunFiles, folder: Path) -> None:
    """Write `index.html` into `folder`, and beside it each plot as `plots/*.png` and `vector/*.svg`."""
    here = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    title, summary = content.headline(files)
    once, often = content.flow(files)
    student = files.training.text("weights")
    cache_bytes = files.cache.record("bytes_per_position").numbers()
    html = templates.get_template("page.html.j2").render(
        css=(here / "style.css").read_text(encoding="utf-8"),
        title=title,
        summary=summary,
        tiles=content.tiles(files),
        warnings=_warnings(files),
        once=once,
        often=often,
        this_run=closeness.this_run_table(files),
        measures=closeness.MEASURES[files.objective],
        comparison=_comparison(files, folder),
        downstream=None if files.finetuning is None else downstream_part(files.finetuning, student, folder),
        training_plots=plots.training_plots(files, folder),
        teacher_plots=plots.teacher_plots(files, folder),
        cache_facts=content.cache_facts(files),
        bytes_table=tables.bytes_table(files.cache),
        bytes_plots=plots.bytes_plot(cache_bytes, folder),
        distribution_table=tables.distribution_table(files.cache, files.objective),
        spread_plots=plots.spread_plots(files.histograms, folder, files.objective),
        logits_cached=bool(files.cache_run.record("retained_mass").values),
        speed_table=tables.speed_table(files.speed),
        on_text=None if files.speed_on_text is None else speed_part(files.speed_on_text, student, folder),
        paper=published.SOURCE,
        load=content.LOAD[files.objective],
        provenance=content.provenance_facts(files),
        packages=content.packages(files),
        parameters=content.parameters_yaml(files),
    )
    (folder / "index.html").write_text(html, encoding="utf-8")


def _warnings(files: RunFiles) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    cache, trained_on = files.cache.text("root_digest"), files.training.text("cache_root_digest")
    if trained_on != cache:
        found.append(
            f"The student was trained from another cache ({trained_on[:12]}…) than the one described here ({cache[:12]}…). "
            "Run pipeline train-student again to make them one."
        )
    commit = files.provenance.values.get("commit")
    if commit is None:
        found.append("No git commit is known of this run: its code cannot be named.")
    elif commit.endswith("(modified)"):
        found.append(
            "Files differed from the git commit when the student was trained: the commit alone does not give its code."
        )
    return found


def _comparison(files: RunFiles, folder: Path) -> Comparison | None:
    if files.comparison is None:
        return None
    runs = closeness.comparison_runs(files.comparison)
    notes = []
    cache, compared_on = files.cache.text("root_digest"), files.comparison.text("cache_root_digest")
    if compared_on != cache:
        notes.append(
            f"This comparison was made on another cache ({compared_on[:12]}…) than this run's ({cache[:12]}…): "
            "its figures stand for themselves. Run pipeline compare to make it anew."
        )
    differences = differing_fields(
        {"train": to_plain(files.config.train), "student": to_plain(files.config.student)},
        {name: files.comparison.record(name).values for name in ("train", "student")},
        found_in="in the comparison",
    )
    if differences:
        notes.append(
            f"This run's student was trained with other parameters than the comparison's: {'; '.join(differences)}. "
            "Run pipeline compare to make it anew."
        )
    variation = files.comparison.record("variation") if "variation" in files.comparison else None
    against = None if variation is None else variation.text("from")
    return Comparison(
        table=closeness.comparison_table(files.comparison, runs, files.objective),
        plots=dots.comparison_plots(runs, folder, files.objective),
        notes=notes,
        variation=variation_part(runs, folder, files.objective, against),
    )
