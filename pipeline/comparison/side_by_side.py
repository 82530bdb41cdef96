"""`pipeline compare RUN RUN ...`: what is known of runs, side by side; nothing is trained and nothing measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from pipeline.comparison.places import find
from pipeline.comparison.record import record_of, same_yardstick
from pipeline.comparison.scores import same_examples
from pipeline.comparison.table import SPREAD, cell, markdown_table, signed
from pipeline.json_results import write_json_file
from pipeline.option_values import STDOUT
from pipeline.progress import duration
from stages.context import Context
from stages.figures import LABELS
from stages.outputs import write_text
from stages.report_page.units import NO_BREAK, data_size
from stages.tasks import IN_MACRO

Json = Mapping[str, Any]
ABSENT = "-"
MEANS = {"macro": "GLUE, mean", "macro_without_wnli": "GLUE without WNLI, mean", "all": "all tasks, mean"}
ENGINES = {"torch": "PyTorch", "cuda": "GPU", "onnx": "ONNX", "onnx_int8": "int8"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """One row for each run, or for each parameter."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(
    context: Context,
    names: Sequence[str],
    *,
    folders: Mapping[str, str],
    json_file: str | None,
    markdown_file: Path | None,
) -> None:
    """Print tables of the runs called `names`, and write them as JSON (`-`: to stdout, and nothing else) and Markdown where asked.

    `folders`: where the runs of `compare.runs` lie below `runs/comparison`. Raises `InputError` for a run that is not there, and
    files that cannot be read.
    """
    places = [find(name, dict(folders), context.artefacts) for name in dict.fromkeys(names)]
    content = side_by_side([record_of(place) for place in places])
    tables = tables_of(content)
    if markdown_file is not None:
        write_text(markdown_file, markdown(tables, content["notes"]))
    if json_file != STDOUT:
        for table in tables:
            context.progress.table(table.title, table.columns, table.rows)
        for note in content["notes"]:
            context.progress.message(note)
    write_json_file(content, json_file, context.progress, "the figures are")


def side_by_side(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `--json` writes: `runs`, what differs between them in `parameters`, `differences` from the first one, `notes`."""
    first, *others = records
    notes = [note for record in records for note in record.pop("notes")]
    differences = {}
    for record in others:
        differences[record["name"]], said = _difference(first, record)
        notes += said
    parameters = {record["name"]: record.pop("parameters") for record in records if "parameters" in record}
    return {
        "runs": list(records),
        "parameters": _differing(parameters),
        "differences": {"from": first["name"], "runs": differences},
        "notes": notes,
    }


def _difference(first: Json, record: Json) -> tuple[dict[str, float], list[str]]:
    """What the means of a run's figures and scores differ by from the first one's, where they are of the same text; else a note."""
    found, notes = dict[str, float](), list[str]()
    if "held_out" in first and "held_out" in record:
        ours, theirs = record["held_out"], first["held_out"]
        if same_yardstick(ours["on"], theirs["on"]):
            values = [(name, ours["values"][name], theirs["values"].get(name)) for name in ours["values"]]
            found |= {name: mean(mine) - mean(base) for name, mine, base in values if base}
        else:
            notes.append(
                f"held-out figures of {record['name']} are of another split, text or teacher than those of {first['name']}: "
                "they cannot be compared"
            )
    ours, theirs = (_scores(run) for run in (record, first))
    same, said = same_examples(record["name"], _examples(ours), first["name"], _examples(theirs))
    notes += said
    found |= {task: mean(ours["tasks"][task]["scores"]) - mean(theirs["tasks"][task]["scores"]) for task in same}
    if set(same) == set(ours["tasks"]) == set(theirs["tasks"]):
        found |= {name: ours["means"][name] - theirs["means"][name] for name in _means_to_show(same)}
    return found, notes


def _scores(record: Json) -> Json:
    """Those of the results that have the run's own name."""
    scores: Json = record.get("scores", {}).get(record["name"], {"tasks": {}, "means": {}})
    return scores


def _examples(scores: Json) -> dict[str, str]:
    return {task: of_task["evaluation_digest"] for task, of_task in scores["tasks"].items()}


def _means_to_show(tasks: Collection[str]) -> list[str]:
    """The means over these tasks that are no other one's by another name."""
    in_glue = [task for task in tasks if task in IN_MACRO]
    return [
        *(["macro"] if len(in_glue) > 1 else []),
        *(["macro_without_wnli"] if "WNLI" in in_glue and len(in_glue) > 1 else []),
        *(["all"] if len(in_glue) < len(tasks) > 1 else []),
    ]


def _differing(parameters: Mapping[str, Json]) -> dict[str, dict[str, Any]]:
    """Key -> run -> value, of the keys whose values differ; a run without the key is left out."""
    keys = dict.fromkeys(key for of_run in parameters.values() for key in of_run)
    return {
        key: {name: of_run[key] for name, of_run in parameters.items() if key in of_run}
        for key in keys
        if any(of_run.get(key, ...) != next(iter(parameters.values())).get(key, ...) for of_run in parameters.values())
    }


def tables_of(content: Json) -> list[Table]:
    """The tables that have anything to say."""
    runs, differences = content["runs"], content["differences"]
    figures = [name for name in LABELS if any(name in run.get("held_out", {}).get("values", {}) for run in runs)]
    tables = []
    if figures:
        rows = [[run["name"], *(cell(_values(run).get(name, ())) for name in figures)] for run in runs]
        tables.append(Table(title=_split(runs), columns=["", *map(LABELS.__getitem__, figures)], rows=rows))
    results = {name: result for run in runs for name, result in run.get("scores", {}).items()}
    tasks = list(dict.fromkeys(task for result in results.values() for task in result["tasks"]))
    means = _means_to_show(tasks)
    if tasks:
        rows = [
            [
                name,
                *(_percent(result["tasks"].get(task, {}).get("scores", ())) for task in tasks),
                *(_mean_of(result, mean_, len(tasks)) for mean_ in means),
            ]
            for name, result in results.items()
        ]
        tables.append(
            Table(title="fine-tuned, scores in %", columns=["", *tasks, *map(MEANS.__getitem__, means)], rows=rows)
        )
    labels = {**LABELS, **MEANS}
    changed = [name for name in (*figures, *tasks, *means) if any(name in of for of in differences["runs"].values())]
    if changed:
        tables.append(
            Table(
                title=f"difference from {differences['from']}; of scores, in points of %",
                columns=["", *(labels.get(name, name) for name in changed)],
                rows=[
                    [run, *(_signed(of, name, name not in LABELS) for name in changed)]
                    for run, of in differences["runs"].items()
                ],
            )
        )
    tables += _costs(runs)
    if content["parameters"]:
        names = [run["name"] for run in runs]
        rows = [
            [key, *(_shown(values[name]) if name in values else ABSENT for name in names)]
            for key, values in content["parameters"].items()
        ]
        tables.append(Table(title="parameters that differ", columns=["", *names], rows=rows))
    return tables


def _values(run: Json) -> Json:
    values: Json = run.get("held_out", {}).get("values", {})
    return values


def _split(runs: Sequence[Json]) -> str:
    splits = dict.fromkeys(run["held_out"]["on"]["split"] for run in runs if "held_out" in run)
    return f"held-out figures, {' and '.join(splits)} split"


def _percent(scores: Sequence[float]) -> str:
    if not scores:
        return ABSENT
    spread = f" ± {50 * (max(scores) - min(scores)):.1f}" if len(scores) > 1 else ""
    return f"{100 * mean(scores):.1f}{spread}"


def _mean_of(result: Json, name: str, tasks: int) -> str:
    """A mean, and over how many tasks it is where others have more."""
    if name not in result["means"]:
        return ABSENT
    there = len(result["tasks"])
    return _percent([result["means"][name]]) + ("" if there == tasks else f" ({there} of {tasks} tasks)")


def _signed(of: Mapping[str, float], name: str, is_score: bool) -> str:
    if name not in of:
        return ABSENT
    return f"{100 * of[name]:+.1f}" if is_score else signed(of[name])


def _costs(runs: Sequence[Json]) -> list[Table]:
    """Size and speed; training and cache: the columns that any run has something for."""
    size: dict[str, Callable[[Json], str | None]] = {
        "parameters": lambda run: _count(run.get("size", {}).get("parameters")),
        "size": lambda run: _size(run.get("size", {}).get("bytes")),
    }
    for device, label in (("cpu", "CPU"), ("cuda", "GPU")):
        size[f"{label}, one sequence, ms"] = _of_speed(device, "latency_ms")
        size[f"{label}, sequences/s"] = _of_speed(device, "sequences_per_second")
    for engine, label in ENGINES.items():
        size[f"a sentence, {label}, ms"] = _of_speed("sentences", engine, "latency_ms")
    training: dict[str, Callable[[Json], str | None]] = {
        "seeds": lambda run: ", ".join(map(str, run["seeds"])) or None,
        "steps": lambda run: _count(run.get("training", {}).get("steps")),
        "training, median": lambda run: duration(median(run["training"]["seconds"])) if "training" in run else None,
        "cache": lambda run: run.get("cache", {}).get("root_digest", "")[:12] or None,
        "its size": lambda run: _size(run.get("cache", {}).get("bytes")),
        "bytes a position": lambda run: _count(run.get("cache", {}).get("bytes_per_train_position"), 1),
        "made in": lambda run: duration(run["cache"]["seconds"]) if "seconds" in run.get("cache", {}) else None,
    }
    return [*_of_columns("size and speed", size, runs), *_of_columns("training and cache", training, runs)]


def _of_columns(
    title: str, columns: Mapping[str, Callable[[Json], str | None]], runs: Sequence[Json]
) -> Iterable[Table]:
    cells = {name: [value(run) for run in runs] for name, value in columns.items()}
    kept = {name: values for name, values in cells.items() if any(values)}
    if kept:
        rows = [[run["name"], *(values[i] or ABSENT for values in kept.values())] for i, run in enumerate(runs)]
        yield Table(title=title, columns=["", *kept], rows=rows)


def _of_speed(*keys: str) -> Callable[[Json], str | None]:
    """A number below `speed`."""

    def value(run: Json) -> str | None:
        found: Any = run.get("speed", {})
        for key in keys:
            found = found.get(key, {})
        return f"{found:,.2f}" if found else None

    return value


def _count(value: float | None, digits: int = 0) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _size(value: float | None) -> str | None:
    return None if value is None else data_size(value).replace(NO_BREAK, " ")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The tables, each below its title, and the notes as a list."""
    parts = [
        f"{table.title[0].upper()}{table.title[1:]}\n\n{markdown_table(table.columns, table.rows)}" for table in tables
    ]
    parts.append(f"{SPREAD.capitalize()}; KL in nats at T = 1, over the full vocabulary.\n")
    if notes:
        parts.append("".join(f"- {note}\n" for note in notes))
    return "\n".join(parts)
