"""What it costs to store a shard, against writing bare zstd blobs of the same arrays.

BERT-base's shapes, preset `balanced`, random numbers, one core. Both start from the arrays as they are stored, quantised already.
The blobs are each compressed by zstd level 1 and written to a file of their own with fsync. Ours (`CacheWork.store`)
compresses with checksums, hashes, syncs files and folders, renames the shard and writes its manifest. What checks of the
targets and quantisation take before that stands in the table, and is part of both in `writer_vs_blob_from_targets`.

`write_amplification` is what the process handed to the system in writes (/proc/self/io, so on Linux only), divided by the
bytes that the shard has on disk.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cache_of_noise import Shapes, describe, targets
from measure import Spread, arguments, finish, interleaved, one_core, ratio, rounds
from numcodecs import zstd
from numpy.typing import NDArray

from pipeline.summary import print_table
from storage import CacheWork, ShardId

GOALS = {"writer_vs_blob": ">= 0.6", "write_amplification": "<= 1.02"}
SHARD = ShardId("train", 0, 0)


def written_bytes() -> int:
    """What this process has handed to write calls so far."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.partition(": ")[2] for line in lines if line.startswith("wchar")))


def write_blobs(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """A zstd blob per array, each durable; nothing else."""
    for name, array in arrays.items():
        with (folder / f"{name}.zst").open("wb") as file:
            file.write(zstd.compress(array, 1))
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def seconds(run: Callable[[], object]) -> float:
    """What one run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    shapes = Shapes(shards=1, sequences_per_shard=64 if options.quick else 2048)
    description = describe(shapes)
    layout = description.splits["train"].layout
    found = targets(description, shapes, SHARD)
    encoded = found.encode(description, layout)
    amplification: list[float] = []
    with tempfile.TemporaryDirectory() as scratch, CacheWork.open(Path(scratch) / "work", description) as work:
        blobs = Path(scratch) / "blobs"

        def store() -> None:
            before = written_bytes()
            size = work.store(SHARD, encoded, found.counts, {}, {})
            amplification.append((written_bytes() - before) / size)

        def write(arrays: dict[str, NDArray[Any]]) -> None:
            shutil.rmtree(blobs, ignore_errors=True)
            blobs.mkdir()
            write_blobs(blobs, arrays)

        runs: dict[str, Callable[[], object]] = {
            "check": lambda: found.check(description, SHARD, layout),
            "quantise": lambda: found.encode(description, layout),
            "blob": lambda: write(encoded),
            "ours": store,
            "quantise, blob": lambda: write(found.encode(description, layout)),
            "publish": lambda: work.publish(SHARD, found, {}, {}),
        }
        with one_core():
            times = interleaved({name: partial(seconds, run) for name, run in runs.items()}, rounds(options))
        size = sum(file.stat().st_size for file in (work.folder / "shards").rglob("*") if file.is_file())
    rows = found.rows
    names = {
        "check": "checks of the teacher's targets",
        "quantise": "quantisation",
        "blob": "bare zstd blobs with fsync",
        "ours": "ours: a shard, published",
        "quantise, blob": "quantisation, then blobs",
        "publish": "checks, quantisation, then ours",
    }
    print_table(
        f"writing {rows:,} positions of {size / rows:,.0f} bytes, one core",
        ["", "seconds", "thousand positions/s"],
        [
            [names[name], Spread.of(took).shown(3), Spread.of([rows / t / 1e3 for t in took]).shown(0)]
            for name, took in times.items()
        ],
    )
    ratios = {
        "writer_vs_blob": ratio(times["blob"], times["ours"]),
        "writer_vs_blob_from_targets": ratio(times["quantise, blob"], times["publish"]),
        "write_amplification": Spread.of(amplification),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
