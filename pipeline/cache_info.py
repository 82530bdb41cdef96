"""`pipeline cache info`: what a cache holds, as tables or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from stages.context import Context, Figure
from storage.cache_info import FIGURES, KINDS, cache_info
from storage.identity import leaves

COUNTS = ("sequences", "tokens", "rows", "masked")
CODINGS = ("positions", "hidden", "logits")
ABSENT = "-"


def show(folder: Path, context: Context, as_json: bool) -> None:
    """Print it to stdout. Raises what `storage.cache_info` raises."""
    info = cache_info(folder)
    if as_json:
        click.echo(json.dumps(info, indent=2, ensure_ascii=False))
        return
    splits: Mapping[str, Any] = info["splits"]
    progress = context.progress
    progress.summary(f"parameters of {folder}", {key: _plain(value) for key, value in leaves(info["spec"])})
    progress.summary(
        "identity",
        {
            "format version": str(info["format_version"]),
            "fingerprint": info["fingerprint"],
            "root digest": info["root_digest"],
            **{f"SHA-256 of the {name}": _plain(value) for name, value in info["content"].items()},
            "computed with": "; ".join(map(_computed_with, info["computed_with"])),
            "files": info["files"],
            "megabytes": round(info["bytes"] / 1e6, 2),
            "megabytes beside the shards": round(info["bytes_beside_shards"] / 1e6, 2),
        },
    )
    progress.table(
        "what is cached",
        ["split and variant", "shards", "sequences", "tokens", "positions", "masked tokens"],
        [
            [
                f"{split} v{variant}",
                split_info["shards"] // len(split_info["variants"]),
                *(counts[name] for name in COUNTS),
            ]
            for split, split_info in splits.items()
            for variant, counts in split_info["variants"].items()
        ],
    )
    progress.table(
        "how it is coded",
        ["", *splits],
        [
            [name, *(_plain(split_info["layout"].get(name)) for split_info in splits.values())]
            for name in next(iter(splits.values()))["layout"]
        ],
    )
    arrays = list(dict.fromkeys(name for split_info in splits.values() for name in split_info["bytes_per_position"]))
    totals = [round(split_info["bytes"] / max(1, split_info["positions"]), 2) for split_info in splits.values()]
    progress.table(
        "bytes per position",
        ["array", *splits],
        [
            *([name, *(_size(split_info, name) for split_info in splits.values())] for name in arrays),
            ["all", *totals],
        ],
    )
    figures = list(_figures(info))
    if figures:
        of_temperature = [f"{name.replace('_', ' ')} at T = {t}" for name in FIGURES for t in info["temperatures"]]
        progress.table("the teacher, means over positions", ["", "positions", *of_temperature], figures)


def _figures(info: Mapping[str, Any]) -> Iterator[list[Figure]]:
    """A row for each kind of position of each split that has figures."""
    for split, split_info in info["splits"].items():
        for kind in KINDS:
            means = split_info.get(kind)
            if means:
                values = [means.get(name, {}).get(str(t), ABSENT) for name in FIGURES for t in info["temperatures"]]
                yield [f"{split}, {kind}", means["positions"], *values]


def _size(split_info: Mapping[str, Any], array: str) -> Figure:
    size: float | None = split_info["bytes_per_position"].get(array)
    return ABSENT if size is None else round(size, 2)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _computed_with(entry: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in entry.items() if name != "shards")
    return f"{settings} ({entry['shards']} shards)"
