"""Quality per byte: what each way of keeping the teacher's answers takes on disk, and how far it is from the teacher.

Takes any cache: its validation split is stored with hidden states at all positions, whatever the preset of the train split. The
teacher is the dense distribution that the cached hidden state and the frozen head give. A cache of preset `lossless`
also shows what float16 costs; in others the hidden states are float16 already, and that rung's error is 0 by definition.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from ladder.figures import Entry, add_gradients, measure
from ladder.gradient import StudentGradient
from ladder.picture import draw
from ladder.rungs import PER_ROW, rungs
from ladder.source import find, find_student
from ladder.tables import tables
from ladder.teacher import SPLIT, Teacher
from measure import ROUNDS, Spread, finish

from pipeline.summary import print_table
from storage import CacheReader

POSITIONS, QUICK_POSITIONS = 8192, 256
GRADIENT_POSITIONS = 1024


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = find(arguments.cache, folder)
        entries, heading = _measure(cache, find_student(arguments.student, cache), folder, arguments)
    shown = list(tables(entries))
    for table in shown:
        print_table(table.title, table.columns, table.rows)
    if arguments.markdown is not None:
        text = f"{heading}\n\n" + "\n".join(table.markdown() for table in shown)
        arguments.markdown.write_text(text, encoding="utf-8")
    if arguments.picture is not None:
        draw(entries, arguments.picture, heading.partition(". ")[0])
    finish(_ratios(entries), GOALS, arguments.json, quick=arguments.quick)
    if arguments.json is not None:
        content = json.loads(arguments.json.read_text(encoding="utf-8"))
        content["rungs"] = [entry.plain() for entry in entries]
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _measure(
    cache: Path, student_folder: Path | None, folder: Path, arguments: argparse.Namespace
) -> tuple[list[Entry], str]:
    """All figures, and a line that says of what they are."""
    reader = CacheReader(cache)
    description = reader.description
    layout = description.splits[SPLIT].layout
    teacher = Teacher.of(reader, QUICK_POSITIONS if arguments.quick else arguments.positions)
    chosen = rungs(
        layer=layout.hidden_layers[-1],
        hidden_size=description.hidden_size,
        vocabulary_size=description.vocabulary_size,
    )
    heading = (
        f"{len(teacher.hidden):,} positions ({int(teacher.masked.sum()):,} masked), H = {description.hidden_size}, "
        f"V = {description.vocabulary_size:,}. Hidden states cached as {layout.hidden}"
    )
    print(f"{cache}: {heading}")
    entries, stored, said = measure(description, teacher, chosen, folder, 1 if arguments.quick else ROUNDS)
    first = entries[0]
    shared = first.total_bytes - first.targets_bytes
    sizes = [entry.metadata_bytes for entry in entries]
    heading += (
        f"; {shared:.1f} B per position are tokens, masks and statistics, which all rungs hold; "
        f"beside them {min(sizes):,} to {max(sizes):,} B of metadata per shard, which are not counted"
    )
    if student_folder is None:
        print("no trained student is named or lies beside the cache: gradients are left out")
        return entries, f"{heading}."
    student = StudentGradient(
        student_folder, teacher, description.pad_id, 128 if arguments.quick else arguments.gradient_positions
    )
    for number, name in enumerate(add_gradients(entries, chosen, stored, said, student), start=1):
        print(f"gradient {number} of {len(entries)}: {name}", flush=True)
    kind = "a trained student" if student_folder.name == "student" else f"the student {student_folder.name}"
    return entries, f"{heading}. Gradients: {kind}, {student.rows:,} positions."


GOALS = {
    "bytes, balanced / exact": "0.50 (design: 813 / 1,630 at H = 768)",
    "bytes, small / balanced": "0.08 to 0.10 (at H = 768)",
    "gradient error, mean of 16 draws / one": "0.25, if unbiased",
}


def _ratios(entries: Sequence[Entry]) -> dict[str, Spread]:
    """Those that tell most; without a student, those of bytes and divergences only."""
    by_name = {entry.name: entry for entry in entries if entry.tail in (None, "rest")}
    balanced, exact, small = by_name["balanced"], by_name["exact"], by_name["small"]
    values = {
        "bytes, balanced / exact": balanced.total_bytes / exact.total_bytes,
        "bytes, small / balanced": small.total_bytes / balanced.total_bytes,
    }
    per_row, bfloat16 = by_name[PER_ROW], by_name["hidden bfloat16"]
    groups = by_name.get("hidden int8, groups of 64", per_row)
    values["KL T = 1, int8 per row / in groups of 64"] = per_row.kl["1.0"]["all"] / groups.kl["1.0"]["all"]
    values["KL T = 1, int8 in groups of 64 / bfloat16"] = groups.kl["1.0"]["all"] / bfloat16.kl["1.0"]["all"]
    if small.gradient:
        top = by_name["top-32, grid 1/8"].gradient["2.0"]["all"]
        values["gradient error, top-32 + rest / balanced"] = top / balanced.gradient["2.0"]["all"]
        draws = by_name["50 draws"].averaged
        values["gradient error, mean of 16 draws / one"] = draws["16"]["all"] / draws["1"]["all"]
    return {name: Spread(value, value, value) for name, value in values.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "cache", nargs="?", type=Path, help="a finished cache; else cache/current here, else one is made"
    )
    parser.add_argument(
        "--student", type=Path, metavar="FOLDER", help="a trained student; else models/student beside it"
    )
    parser.add_argument("--positions", type=int, default=POSITIONS, help=f"of the yardstick, about ({POSITIONS:,})")
    parser.add_argument(
        "--gradient-positions", type=int, default=GRADIENT_POSITIONS, help=f"of the gradient ({GRADIENT_POSITIONS:,})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write ratios and the rungs' figures there")
    parser.add_argument("--quick", action="store_true", help="few positions; only shows that it runs")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="bytes against error, .svg or .png")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables in Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
