"""Teacher and student on sentences, engine by engine: the content of `runs/speed.json`, the paper's figures below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.report_page import published
from stages.report_page.dots import Line, draw_dots
from stages.report_page.drawing import SECOND, Plot
from stages.report_page.parts import Part
from stages.report_page.run_files import Record
from stages.report_page.tables import Cell, Column, Table, faster
from stages.report_page.units import NO_BREAK, count, data_size, millions, number, percent, plural, times
from stages.speed.tables import ENGINES

_WHO = ("teacher", "student")
_RANDOM = "random"
"""Stands for the weights of a teacher that was not at hand: its shape was timed."""


def speed_part(speed: Record, student: str, folder: Path) -> Part:
    """Tables, plot and notes of what `speed.json` holds; `student` is the digest of this run's weights. The plot goes into `folder`."""
    compared = _agreement_table(speed)
    return Part(
        notes=_notes(speed, student),
        tables=[_table(speed), *([compared] if compared else [])],
        plots=[_plot(speed, folder)],
    )


def _engines(speed: Record) -> list[str]:
    """Those that both were timed in, or the student alone, in the order in which they are shown."""
    timed = speed.record("student").record("engines")
    return [engine for engine in ENGINES if engine in timed]


def _table(speed: Record) -> Table:
    """Sizes and times of teacher and student, and how many times as fast the student is; the paper's as the last rows."""
    who = [speed.record(one) for one in _WHO]
    ratios, sentences = speed.record("ratio"), speed.record("sentences")
    rows = [
        [
            Cell("Parameters"),
            *(Cell(count(one.number("parameters"))) for one in who),
            Cell(f"{percent(ratios.number('parameters'))} of the teacher"),
        ]
    ]
    for engine in _engines(speed):
        timed = [
            one.record("engines").record(engine) if engine in one.record("engines") else None for one in who
        ]  # a teacher may have no ONNX file
        ratio = ratios.record("engines").record(engine) if engine in ratios.record("engines") else None
        rows += _engine_rows(engine, timed, ratio)
    ours = [published.PARAMETERS[model] for model in (published.TEACHER, published.STUDENT)]
    took = [published.PASS_SECONDS[model] for model in (published.TEACHER, published.STUDENT)]
    rows += [
        [
            Cell("DistilBERT paper", detail="parameters"),
            *(Cell(millions(value)) for value in ours),
            Cell(f"{percent(ours[1] / ours[0])} of the teacher"),
        ],
        [
            Cell("DistilBERT paper", detail="one at a time"),
            *(Cell(f"{count(value)}{NO_BREAK}s") for value in took),
            Cell(faster(took[1] / took[0])),
        ],
    ]
    return Table(
        name="speed-on-text",
        caption=(
            f"On sentences, each of its own length: {count(sentences.number('count'))} of {sentences.text('source')}, "
            f"{count(sentences.number('tokens'))} tokens; {plural(speed.number('threads'), 'CPU thread')}. Teacher and student took "
            "turns, forward pass without the head. One at a time: the whole pass and, small, the median of a sentence. The student "
            "is: the median over the rounds and, small, the lowest and the highest. The paper's pass is over STS-B's dev set."
        ),
        columns=[Column(""), Column("Teacher"), Column("Student"), Column("The student is")],
        rows=rows,
    )


def _engine_rows(engine: str, timed: Sequence[Record | None], ratio: Record | None) -> list[list[Cell]]:
    """Size, one sentence at a time, and batches of each size."""
    name = ENGINES[engine]
    sizes = [None if one is None or one.values.get("bytes") is None else one.number("bytes") for one in timed]
    teacher, student = sizes
    rows = [
        [
            Cell(name, detail="on disk"),
            *(Cell("–" if size is None else data_size(size)) for size in sizes),
            Cell(f"{percent(student / teacher)} of the teacher" if student and teacher else "–"),
        ],
        [
            Cell(name, detail="one at a time"),
            *(Cell("–") if one is None else _latency(one) for one in timed),
            Cell("–") if ratio is None else _ratio(ratio.record("latency")),
        ],
    ]
    student_timed = timed[1]
    batches = () if student_timed is None else sorted(student_timed.record("sentences_per_second").values, key=int)
    for size in batches:
        speeds = (None if one is None else one.record("sentences_per_second").number(size) for one in timed)
        row = [Cell(name, detail=f"in batches of {size}")]
        row += [Cell("–" if speed is None else f"{number(speed, 3)}{NO_BREAK}/s") for speed in speeds]
        row.append(Cell("–") if ratio is None else _ratio(ratio.record("throughput").record(size)))
        rows.append(row)
    return rows


def _latency(timed: Record) -> Cell:
    """The whole pass and, below it, the median of a sentence."""
    return Cell(
        f"{number(timed.number('pass_seconds'), 3)}{NO_BREAK}s",
        detail=f"{number(timed.number('latency_ms'), 3)}{NO_BREAK}ms",
    )


def _ratio(spread: Record) -> Cell:
    low, high = (number(spread.number(key), 3) for key in ("low", "high"))
    return Cell(faster(1 / spread.number("median")), detail=f"{low}–{high}")


def _agreement_table(speed: Record) -> Table | None:
    """How far the ONNX files' outputs are from PyTorch's; None where none were compared."""
    rows = []
    positions = 0.0
    for engine in _engines(speed):
        for who in _WHO:
            engines = speed.record(who).record("engines")
            if engine in engines and "against_torch" in engines.record(engine):
                found = engines.record(engine).record("against_torch")
                positions = found.number("positions")
                rows.append(
                    [
                        Cell(ENGINES[engine], detail=who),
                        Cell(number(found.number("hidden_max_difference"), 3)),
                        Cell(number(found.number("logits_max_difference"), 3)),
                        Cell(number(found.number("hidden_cosine"), 5)),
                        Cell(percent(found.number("agreement"))),
                    ]
                )
    if not rows:
        return None
    return Table(
        name="speed-agreement",
        caption=f"ONNX files against the same model in PyTorch, over {count(positions)} positions.",
        columns=[
            Column(""),
            Column("Hidden states", "largest difference"),
            Column("Logits", "largest difference"),
            Column("Hidden states", "cosine"),
            Column("Same first token", "share of positions"),
        ],
        rows=rows,
    )


def _plot(speed: Record, folder: Path) -> Plot:
    """How many times as fast the student is, with the range over the rounds; the paper's ratio as the last line."""
    ratios = speed.record("ratio").record("engines")
    lines = []
    for engine in _engines(speed):
        if engine in ratios:
            ratio = ratios.record(engine)
            lines.append(_line(f"{ENGINES[engine]}, one at a time", ratio.record("latency").numbers()))
            batches = ratio.record("throughput")
            lines += [
                _line(f"{ENGINES[engine]}, in {size}s", batches.record(size).numbers())
                for size in sorted(batches.values, key=int)
            ]
    paper = published.PASS_SECONDS[published.TEACHER] / published.PASS_SECONDS[published.STUDENT]
    lines.append(
        Line(label="DistilBERT paper, one at a time", values=[paper], shown=times(paper), colour=SECOND),
    )
    return draw_dots(
        lines,
        folder,
        name="speed-ratios",
        title="The student, times as fast as the teacher",
        unit="times as fast",
        caption="Dots: the median over the rounds, bars: from the lowest to the highest. Strokes: as fast as the teacher.",
        log=True,
        mark=1.0,
    )


def _line(label: str, spread: Mapping[str, float]) -> Line:
    return Line(
        label=label, values=[spread["median"]], shown=times(spread["median"]), span=(spread["low"], spread["high"])
    )


def _notes(speed: Record, student: str) -> list[str]:
    notes = []
    timed = speed.record("student").text("weights")
    if timed != student:
        notes.append(
            f"These times are of another student (weights {timed}) than this run's ({student}). "
            "Run pipeline evaluate --speed to make them anew."
        )
    if speed.record("teacher").text("weights") == _RANDOM:
        notes.append(
            "The teacher was not at hand: a model of its shape with random weights was timed in its place. It is as fast."
        )
    return notes
