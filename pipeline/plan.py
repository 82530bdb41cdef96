"""`pipeline plan`: the plan as tables, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.json_results import write_json_file
from pipeline.option_values import STDOUT
from pipeline.progress import counted, duration
from stages import plan as stage
from stages.config import Config
from stages.context import Context, Progress
from stages.report_page.units import NO_BREAK, data_size

Json = Mapping[str, Any]
UNSTEADY = 2.0
"""Between the fastest and the slowest piece: more is not the text's doing."""


def make(
    config: Config, context: Context, *, workers: Sequence[int], sample_tokens: int, json_file: str | None
) -> None:
    """Plan, and print tables; `json_file` gets the plan as JSON, and where it is `-`, stdout gets that and nothing else."""
    planned = stage.run(config, context, workers=workers, sample_tokens=sample_tokens)
    if json_file != STDOUT:
        show(planned, context.progress)
    write_json_file(planned, json_file, context.progress, "the plan is")


def show(planned: Json, progress: Progress) -> None:
    """Print a plan as tables, and a line for each reason not to trust it or not to follow it."""
    splits, teacher, disk = planned["splits"], planned["teacher"], planned["disk"]
    progress.table(
        f"what will be cached; mask variants: {splits['train']['variants']}",
        ["split", "sequences", "tokens", "positions", "shards", "size"],
        [
            [
                name,
                *(split[key] for key in ("sequences", "tokens", "positions", "shards")),
                size(split["bytes"]),
            ]
            for name, split in splits.items()
        ],
    )
    configured = sum(splits["train"]["bytes_per_position"].values())
    progress.table(
        f"what it takes, positions: {planned['positions']}",
        ["", "bytes per train position", "whole cache"],
        [
            ["as configured", round(configured, 1), size(planned["bytes"])],
            *(
                [f"preset {name}", round(preset["bytes_per_train_position"], 1), size(preset["bytes"])]
                for name, preset in planned["presets"].items()
            ),
        ],
    )
    progress.summary("disk", _disk(disk, planned["bytes"]))
    progress.table(
        f"one pass of the teacher: {counted(teacher['tokens_to_run'], 'tokens')}",
        ["workers", "time", "held up by"],
        [
            [
                f"{number}, this machine" if number == "1" else number,
                duration(3600 * hours),
                "disk" if hours == planned["write_hours"] else "teacher",
            ]
            for number, hours in planned["hours"].items()
        ],
    )
    progress.summary(
        "the teacher here",
        {
            "device": planned["device"],
            "parameters": teacher["parameters"],
            "arithmetic": f"{teacher['precision']}, {teacher['attention']}{', compiled' * teacher['compiled']}",
            "tokens per second": teacher["tokens_per_second"],
            "slowest and fastest piece": f"{teacher['slowest']:,.0f} to {teacher['fastest']:,.0f}",
        },
    )
    progress.summary("when it pays", _student_run(planned["student_run"]))
    progress.summary("memory that the student's device saves", _memory(planned["memory"]))
    if teacher["fastest"] > UNSTEADY * teacher["slowest"]:
        progress.message(
            f"times are rough: the teacher's speed differed {teacher['fastest'] / teacher['slowest']:.1f} times between pieces of the "
            "sample; is this machine busy with something else?"
        )
    if not disk["fits"]:
        progress.message(
            f"this cache does not fit: it needs {size(disk['needed_bytes'])} here and {size(disk['free_bytes'])} are free; "
            "see cache.preset, cache.positions and --root"
        )


def _disk(disk: Json, cache_bytes: int) -> dict[str, str]:
    speed = disk["write_bytes_per_second"]
    if disk["at_root"]:
        return {
            "the cache": f"{size(cache_bytes)}, at the root",
            "free here": size(disk["free_bytes"]),
            "the root's room and speed": "not probed",
        }
    return {
        "the cache": size(cache_bytes),
        "with DVC's copy": f"{size(disk['needed_bytes'])} ({_shared(disk)})",
        "free": size(disk["free_bytes"]),
        "durable writing": "not probed: too little room" if speed is None else f"{size(speed)}/s",
    }


def _shared(disk: Json) -> str:
    if disk["hard_links"]:
        return "hard links"
    return "shares blocks" if disk["copies"] == 1 else "no reflinks here"


def _student_run(run: Json) -> dict[str, str | int]:
    runs = run["runs_to_break_even"]
    return {
        "one training sees": counted(run["tokens"], "tokens"),
        "the teacher in its loop takes": duration(run["online_seconds"]),
        "the cache in its place": f"{duration(run['cached_seconds'])}, of which head {duration(run['of_which_head'])}",
        "making the cache": duration(run["cache_seconds"]),
        "runs from which the cache costs less": "never" if runs is None else runs,
    }


def _memory(memory: Json) -> dict[str, str]:
    return {
        "teacher's weights": size(memory["weights"]),
        f"its activations, {memory['method']}": size(memory["activations"]),
        "its head, kept for kd_source: hidden": size(memory["head_kept"]),
        "saved": size(memory["saved"]),
    }


def size(number: float) -> str:
    """`12.34 GB`, decimal units."""
    return data_size(number).replace(NO_BREAK, " ")
