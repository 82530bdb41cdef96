"""What `on_text` measured, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.context import Figure, Progress

ENGINES = {"torch": "PyTorch", "cuda": "PyTorch, GPU", "onnx": "ONNX Runtime", "onnx_int8": "ONNX Runtime, int8"}
NOT_THERE = "-"


def show(result: Mapping[str, Any], progress: Progress) -> None:
    """Print the content of `runs/speed.json`."""
    sentences, ratio = result["sentences"], result["ratio"]
    rows = [
        (who, engine, figures) for who in ("teacher", "student") for engine, figures in result[who]["engines"].items()
    ]
    sizes = list(rows[0][2]["sentences_per_second"])
    progress.summary(
        "parameters",
        {
            "teacher": f"{result['teacher']['parameters']:,}",
            "student": f"{result['student']['parameters']:,} ({ratio['parameters']:.0%} of the teacher's)",
        },
    )
    progress.table(
        f"{sentences['count']:,} sentences of {sentences['source']}, {sentences['tokens']:,} tokens; threads: {result['threads']}",
        ["", "MB", "whole pass, s", "a sentence, ms", "90 % below, ms", *(f"sentences/s in {size}s" for size in sizes)],
        [
            [
                f"{who}, {ENGINES[engine]}",
                f"{figures['bytes'] / 1e6:.1f}" if figures.get("bytes") else NOT_THERE,
                f"{figures['pass_seconds']:.2f}",
                f"{figures['latency_ms']:.2f}",
                f"{figures['latency_ms_p90']:.2f}",
                *(f"{figures['sentences_per_second'][size]:.1f}" for size in sizes),
            ]
            for who, engine, figures in rows
        ],
    )
    progress.table(
        "the student, times as fast as the teacher (lowest to highest round)",
        ["", "one at a time", *(f"in {size}s" for size in sizes)],
        [
            [
                ENGINES[engine],
                *(_shown(spread) for spread in (of["latency"], *(of["throughput"][size] for size in sizes))),
            ]
            for engine, of in ratio["engines"].items()
        ],
    )
    _show_differences(rows, progress)


def _shown(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def _show_differences(rows: list[tuple[str, str, Mapping[str, Any]]], progress: Progress) -> None:
    compared: list[list[Figure]] = [
        [
            f"{who}, {ENGINES[engine]}",
            f"{found['hidden_max_difference']:.2g}",
            f"{found['logits_max_difference']:.2g}",
            f"{found['hidden_cosine']:.5f}",
            f"{found['agreement']:.2%}",
        ]
        for who, engine, figures in rows
        if (found := figures.get("against_torch"))
    ]
    if compared:
        progress.table(
            "against the same model in PyTorch",
            ["", "hidden, largest difference", "logits, largest difference", "hidden, cosine", "same most likely id"],
            compared,
        )
