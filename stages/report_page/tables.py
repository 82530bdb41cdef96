"""Tables of the report: what a cell, a column and a table are, and those about the cache and about size and speed."""

from __future__ import annotations

from dataclasses import dataclass

from stages.figures import Objective
from stages.report_page.run_files import Record
from stages.report_page.units import NO_BREAK, count, data_size, millions, number, percent, times


@dataclass(frozen=True)
class Cell:
    """Text, perhaps with a smaller line below it; `best` is marked."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A heading, its unit and which direction is better; the last two may be empty."""

    label: str
    unit: str = ""
    better: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells, one per column; the first cell of a row is its heading."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    words: frozenset[int] = frozenset()
    """Indices of the columns that hold words, not numbers."""


_ARRAYS = {
    "sequence_offsets": "where each sequence begins",
    "original_ids": "token ids of the text",
    "input_ids": "token ids that the teacher saw, masks and all",
    "masked": "which tokens are to be predicted",
    "row_token": "the token that each cached position belongs to",
    "stat": "largest logit; log-sum-exp and entropy per temperature",
    "top_count": "number of ids that each position keeps",
    "top_ids": "ids of the most likely tokens",
    "top_logits": "their logits",
    "top_gap": "their logits, on a grid below the largest",
    "draw_count": "number of different drawn ids",
    "draw_ids": "the drawn ids",
    "draw_weight": "how often each was drawn",
    "hidden": "hidden states of the teacher",
    "hidden_scale": "scales of the quantised hidden state",
    "queries": "queries of the teacher's attention",
    "queries_scale": "scales of the quantised queries",
    "keys": "keys of the teacher's attention",
    "keys_scale": "scales of the quantised keys",
    "values": "values of the teacher's attention",
    "values_scale": "scales of the quantised values",
    "metadata": "Zarr's own description of the arrays",
}


def bytes_table(cache: Record) -> Table:
    """Bytes per cached position of the train split, by array, largest first."""
    arrays = cache.record("bytes_per_position").numbers()
    rows = [
        [Cell(name), Cell(_ARRAYS.get(name, "")), Cell(number(value, 3))]
        for name, value in sorted(arrays.items(), key=lambda item: -item[1])
    ]
    return Table(
        name="cache-arrays",
        caption="What a cached position of the train split is made of, compressed.",
        columns=[Column("Array"), Column("Holds"), Column("Bytes")],
        rows=rows,
        words=frozenset({1}),
    )


def distribution_table(cache: Record, objective: Objective) -> Table:
    """Means of entropy and retained mass per temperature, on masked and on other positions; of a causal teacher on all."""
    masks = objective == "masked"
    groups = [(cache.record("masked"), "masked"), (cache.record("unmasked"), "unmasked")]
    rows = []
    for key, label, show in (("entropy", "Entropy", number), ("retained_mass", "Mass in the top k", percent)):
        means = {name: group.record(key).numbers() if key in group else {} for group, name in groups}
        for temperature in sorted({*means["masked"], *means["unmasked"]}, key=float):
            everywhere = _over_both(cache, key, temperature)
            apart = [means["masked"].get(temperature), means["unmasked"].get(temperature)] if masks else []
            unit = "nats" if key == "entropy" else "share of probability"
            rows.append(
                [
                    Cell(f"{label}, T = {float(temperature):g}", detail=unit),
                    *(Cell("–" if v is None else show(v)) for v in (*apart, everywhere)),
                ]
            )
    sizes = [count(group.number("positions")) if "positions" in group else "none" for group, _ in groups]
    return Table(
        name="cache-distributions",
        caption="The teacher's predictions on the train split: means over "
        f"{'masked tokens and over the others' if masks else 'all positions that are cached'}.",
        columns=[
            Column(""),
            *([Column("Masked", sizes[0]), Column("Not masked", sizes[1])] if masks else []),
            Column("All cached"),
        ],
        rows=rows,
    )


def _over_both(cache: Record, key: str, temperature: str) -> float | None:
    """The mean over all cached positions, from the means over the masked and over the others."""
    weighted = [
        (group.number("positions"), group.record(key).number(temperature))
        for group in (cache.record("masked"), cache.record("unmasked"))
        if key in group and temperature in group.record(key)
    ]
    positions = sum(count for count, _ in weighted)
    return sum(count * mean for count, mean in weighted) / positions if positions else None


def speed_table(speed: Record) -> Table:
    """Parameters, bytes, latency and throughput of teacher and student, and what the student is of the teacher."""
    teacher, student, ratio = speed.record("teacher"), speed.record("student"), speed.record("ratio")
    rows = [
        [
            Cell("Parameters"),
            *(Cell(count(model.number("parameters"))) for model in (teacher, student)),
            Cell(f"{percent(ratio.number('parameters'))} of the teacher"),
        ],
        [
            Cell("Weights on disk"),
            *(Cell(data_size(model.number("bytes"))) for model in (teacher, student)),
            Cell(f"{percent(ratio.number('bytes'))} of the teacher"),
        ],
    ]
    for device in ("cpu", "cuda"):
        if device in ratio:
            rows += _device_rows(device, speed)
    return Table(
        name="speed",
        caption=(
            "Teacher and student side by side: forward pass without the head, in float32, on sequences of "
            f"{count(speed.number('sequence_tokens'))} tokens, "
            f"{count(speed.number('threads'))} CPU thread{'s' if speed.number('threads') != 1 else ''}, "
            f"{count(speed.number('rounds'))} rounds."
        ),
        columns=[Column(""), Column("Teacher"), Column("Student"), Column("The student is")],
        rows=rows,
    )


def _device_rows(device: str, speed: Record) -> list[list[Cell]]:
    label = {"cpu": "CPU", "cuda": "GPU"}[device]
    models = [speed.record(who).record(device) for who in ("teacher", "student")]
    ratio = speed.record("ratio").record(device)
    return [
        [
            Cell(f"{label} latency", detail="one sequence"),
            *(Cell(f"{number(model.number('latency_ms'), 3)}{NO_BREAK}ms") for model in models),
            Cell(faster(ratio.number("latency"))),
        ],
        [
            Cell(f"{label} throughput", detail=f"batches of {count(speed.number('batch_size'))}"),
            *(Cell(f"{number(model.number('sequences_per_second'))}{NO_BREAK}/s") for model in models),
            Cell(faster(1 / ratio.number("throughput"))),
        ],
    ]


def faster(time_ratio: float) -> str:
    """In words: a student that takes 0.5 of the teacher's time is 2.00 × faster."""
    return f"{times(1 / time_ratio)} faster" if time_ratio <= 1 else f"{times(time_ratio)} slower"


def smaller(speed: Record) -> tuple[str, str]:
    """The parameters' ratio, and both counts in words."""
    teacher, student = (speed.record(who).number("parameters") for who in ("teacher", "student"))
    return percent(
        speed.record("ratio").number("parameters")
    ), f"{millions(student)} of the teacher's {millions(teacher)}"
