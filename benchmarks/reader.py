"""How fast shuffled batches come out of a cache, per core: our reader, and four other ways to store the same arrays.

BERT-base's shapes, preset `balanced`, random numbers. Every contender gives the same batches (the plan's order: shuffled
within windows of four shards), as copies of the rows of their sequences, on one core; only how the arrays lie on disk and
get into memory differs:

    reader    shards of this project, decoded ahead by a process of its own (on the same core)
    zarrs     the same, decoded by the package zarrs
    zarr      the same, decoded by zarr-python
    blob      a bare zstd blob per array and shard, read and decompressed whole: the floor
    npy       an uncompressed .npy per array and shard, memory-mapped
    parquet   a Parquet file (zstd) per shard with a row per sequence
    random    zarr-python's z[i], the rows of each sequence when it is their turn

The files are in the page cache for all of them.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from cache_of_noise import Shapes, build
from measure import Spread, arguments, finish, interleaved, one_core, ratio, rounds
from numcodecs import zstd
from numpy.typing import NDArray

from pipeline.summary import print_table
from stages.batch_plan import BatchPlan
from storage import CacheReader, ShardArrays, ShardId, ShardLoader, decoded_bytes
from storage.arrays import ArraySpec, array_table
from storage.shard import Engine, assemble

GOALS = {"reader_vs_blob": ">= 1.0", "reader_zarrs_vs_blob": ">= 1.0", "reader_vs_random": ">= 7"}
BATCH = 32
EPOCHS = 3

PARQUET: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}

Arrays = dict[str, NDArray[Any]]
Batches = Iterator[ShardArrays]


@dataclass
class Cache:
    """The cache, the order of its batches, and the same arrays stored in other ways below `folder`."""

    reader: CacheReader
    plan: BatchPlan
    folder: Path
    shards: list[ShardId] = field(init=False)
    table: tuple[ArraySpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shards = self.reader.shards("train")
        description = self.reader.description
        self.table = array_table(description, description.splits["train"].layout)

    @property
    def tokens_per_sequence(self) -> int:
        split = self.reader.description.splits["train"]
        return split.tokens // split.sequences

    def steps(self, epochs: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """What each step takes, (sequences, 2) and their windows, in the plan's order."""
        for step in range(epochs * self.plan.steps_per_epoch):
            yield self.plan.batch(step), self.plan.windows_of(step)

    def loaded(self, load: Callable[[ShardId], ShardArrays], epochs: int) -> Batches:
        """Batches from shards that are loaded whole, those of a window kept."""
        kept: dict[int, ShardArrays] = {}
        current = -1
        for batch, windows in self.steps(epochs):
            parts = []
            for window in np.unique(windows):
                if window != current:
                    kept.clear()
                    current = int(window)
                of_window = batch[windows == window]
                for number in np.unique(of_window[:, 0]):
                    if number not in kept:
                        kept[number] = load(self.shards[number])
                    parts.append(kept[number].select(of_window[of_window[:, 0] == number, 1]))
            yield ShardArrays.concatenate(parts)


def from_loader(cache: Cache, engine: Engine, epochs: int) -> Batches:
    """As `stages.batches.PlannedBatches` does it, up to the tensors."""
    reader = CacheReader(cache.reader.folder, engine=engine)
    steps = epochs * cache.plan.steps_per_epoch
    order = (
        (window, cache.shards[number]) for window, _, numbers in cache.plan.windows(0, steps) for number in numbers
    )
    slots = min(2 * cache.plan.window_shards, len(cache.shards))
    with ShardLoader(reader, order, slots=slots, slot_bytes=decoded_bytes(reader, cache.shards)) as loader:
        for batch, windows in cache.steps(epochs):
            parts = []
            for window in np.unique(windows):
                of_window = batch[windows == window]
                for number in np.unique(of_window[:, 0]):
                    arrays = loader.get(int(window), cache.shards[number])
                    parts.append(arrays.select(of_window[of_window[:, 0] == number, 1]))
            yield ShardArrays.concatenate(parts)
            MEMORY["process"] = loader.process_id


MEMORY: dict[str, int] = {}
"""The loader's process, for the measurement of memory."""


def write_others(cache: Cache) -> None:
    """The arrays of every shard as blobs, npy and Parquet."""
    for shard in cache.shards:
        arrays = stored_arrays(cache, shard)
        for name, array in arrays.items():
            place = cache.folder / f"{shard}.{name}"
            place.with_suffix(f".{name}.zst").write_bytes(zstd.compress(array, 1))
            np.save(place.with_suffix(f".{name}.npy"), array)
        pq.write_table(
            as_table(cache, arrays), cache.folder / f"{shard}.parquet", compression="zstd", row_group_size=64
        )


def stored_arrays(cache: Cache, shard: ShardId) -> Arrays:
    """The arrays of a shard as they are stored, by name."""
    loaded = cache.reader.load(shard)
    arrays = {**vars(loaded), **loaded.logits, **loaded.hidden}
    return {spec.name: arrays[spec.name] for spec in cache.table}


def as_table(cache: Cache, arrays: Arrays) -> pa.Table:
    """A row per sequence, a binary column per array: what Parquet reads fastest."""
    per_sequence = cache.tokens_per_sequence
    columns = {}
    for name, array in arrays.items():
        if name != "sequence_offsets":
            rows = np.ascontiguousarray(array).reshape(len(array) // per_sequence, -1).view(np.uint8)
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)]
            )
    return pa.table(columns)


def reshaped(cache: Cache, shard: ShardId, raw: Mapping[str, Any]) -> Arrays:
    """Arrays of their shapes and dtypes, over the same memory, from bytes by name."""
    rows = cache.reader.shard_counts(shard)
    return {
        spec.name: np.frombuffer(raw[spec.name], spec.dtype).reshape(
            spec.shape({**rows, "sequences": cache.reader.description.span(shard)[1]})
        )
        for spec in cache.table
    }


def from_blobs(cache: Cache, epochs: int) -> Batches:
    """Read, decompress, nothing else: no checksum, no check of a value."""

    def load(shard: ShardId) -> ShardArrays:
        raw = {
            spec.name: zstd.decompress((cache.folder / f"{shard}.{spec.name}.zst").read_bytes()) for spec in cache.table
        }
        return assemble(cache.reader.description, shard, reshaped(cache, shard, raw))

    return cache.loaded(load, epochs)


def from_npy(cache: Cache, epochs: int) -> Batches:
    """Memory-mapped: what a batch takes is read when it takes it."""

    def load(shard: ShardId) -> ShardArrays:
        arrays = {spec.name: np.load(cache.folder / f"{shard}.{spec.name}.npy", mmap_mode="r") for spec in cache.table}
        return assemble(cache.reader.description, shard, arrays)

    return cache.loaded(load, epochs)


def from_parquet(cache: Cache, epochs: int) -> Batches:
    """Whole files by pyarrow, one thread; its pieces joined, and no copy into numpy."""

    def load(shard: ShardId) -> ShardArrays:
        table = pq.read_table(cache.folder / f"{shard}.parquet", use_threads=False).combine_chunks()
        raw: dict[str, Any] = {name: table.column(name).chunk(0).buffers()[1] for name in table.column_names}
        raw["sequence_offsets"] = np.arange(0, len(table) + 1, dtype="<u4") * np.uint32(cache.tokens_per_sequence)
        return assemble(cache.reader.description, shard, reshaped(cache, shard, raw))

    return cache.loaded(load, epochs)


def from_random_reads(cache: Cache, epochs: int) -> Batches:
    """`z[i]` for the rows of each sequence; the groups stay open."""
    per_sequence = cache.tokens_per_sequence
    groups = {
        number: zarr.open_group(cache.reader.folder / "shards" / f"{shard}.zarr", mode="r")
        for number, shard in enumerate(cache.shards)
    }
    arrays = {
        number: {spec.name: group[spec.name] for spec in cache.table if spec.name != "sequence_offsets"}
        for number, group in groups.items()
    }
    for batch, _ in cache.steps(epochs):
        parts = []
        for number, place in batch:
            rows = slice(place * per_sequence, (place + 1) * per_sequence)
            found = {name: np.asarray(array[rows]) for name, array in arrays[int(number)].items()}
            offsets = np.array([0, per_sequence], np.uint32)
            parts.append(one_sequence(found, offsets))
        yield ShardArrays.concatenate(parts)


def one_sequence(found: Arrays, offsets: NDArray[np.uint32]) -> ShardArrays:
    """The arrays of a sequence as the other contenders give them."""
    hidden = {name: found.pop(name) for name in ("hidden", "hidden_scale")}
    logits = {"top_gap": found.pop("top_gap")}
    rows = len(found["original_ids"])
    return ShardArrays(
        sequence_ids=np.zeros(1, np.int64),
        sequence_offsets=offsets,
        row_token=np.arange(rows, dtype=np.uint32),
        row_offsets=offsets.astype(np.int64),
        hidden=hidden,
        logits=logits,
        **found,
    )


def tokens_per_second(cache: Cache, batches: Callable[[int], Batches], *, slow: bool) -> float:
    """From the second window of an epoch to before the last.

    None of its shards was in memory before, and as much was read ahead at the start of that time as at its end. A slow
    contender is timed on some batches of these.
    """
    windows = [int(of_step[0]) for _, of_step in cache.steps(1)]
    first, last = windows.index(1), windows.index(windows[-1])
    if slow:
        first, last = 1, 3
    running = batches(1)
    for _ in islice(running, first):
        pass
    started = time.perf_counter()
    tokens = sum(batch.tokens for batch in islice(running, last - first))
    seconds = time.perf_counter() - started
    running.close()  # type: ignore[attr-defined]
    return tokens / seconds


def memory_by_epoch(cache: Cache) -> list[float]:
    """MB that this process and the loader's hold after each of three epochs, shared memory counted once."""
    held = []
    gc.collect()
    before = psutil.Process().memory_full_info().uss
    running = from_loader(cache, "own", EPOCHS)
    for _ in range(EPOCHS):
        for _ in islice(running, cache.plan.steps_per_epoch):
            pass
        both = [psutil.Process(pid).memory_full_info() for pid in (os.getpid(), MEMORY["process"])]
        held.append((sum(getattr(info, "pss", info.rss) for info in both) - before) / 1e6)
    running.close()  # type: ignore[attr-defined]
    return held


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    shapes = Shapes(shards=20, sequences_per_shard=32 if options.quick else 1024)
    with tempfile.TemporaryDirectory() as scratch:
        reader = CacheReader(build(Path(scratch), shapes))
        counts = tuple(count for _, count in reader.description.splits["train"].shards)
        cache = Cache(reader, BatchPlan(counts, BATCH, seed=0, variants=1), Path(scratch))
        write_others(cache)
        contenders: dict[str, Callable[[int], Batches]] = {
            "reader": lambda epochs: from_loader(cache, "own", epochs),
            "zarrs": lambda epochs: from_loader(cache, "zarrs", epochs),
            "zarr": lambda epochs: from_loader(cache, "zarr", epochs),
            "blob": lambda epochs: from_blobs(cache, epochs),
            "npy": lambda epochs: from_npy(cache, epochs),
            "parquet": lambda epochs: from_parquet(cache, epochs),
            "random": lambda epochs: from_random_reads(cache, epochs),
        }

        def measured(name: str) -> Callable[[], float]:
            return lambda: tokens_per_second(cache, contenders[name], slow=name == "random")

        with one_core():
            speeds = interleaved({name: measured(name) for name in contenders}, rounds(options))
        held = memory_by_epoch(cache)
        slot = decoded_bytes(reader, cache.shards) / 1e6
    print_table(
        f"shuffled batches of {BATCH} sequences x {shapes.sequence_tokens} tokens, one core",
        ["how the arrays lie on disk", "thousand tokens/s", "of blob"],
        [
            [name, Spread.of([s / 1e3 for s in speed]).shown(0), ratio(speed, speeds["blob"]).shown()]
            for name, speed in speeds.items()
        ],
    )
    print_table(
        f"memory of both processes beyond the start, MB (eight slots of {slot:.0f} MB)",
        ["", *(f"after epoch {epoch}" for epoch in range(1, EPOCHS + 1))],
        [["reader", *(f"{value:,.0f}" for value in held)]],
    )
    ratios = {
        "reader_vs_blob": ratio(speeds["reader"], speeds["blob"]),
        "reader_zarrs_vs_blob": ratio(speeds["zarrs"], speeds["blob"]),
        "reader_vs_random": ratio(speeds["reader"], speeds["random"]),
        "reader_vs_npy": ratio(speeds["reader"], speeds["npy"]),
        "reader_vs_parquet": ratio(speeds["reader"], speeds["parquet"]),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
