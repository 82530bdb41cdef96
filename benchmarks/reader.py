"""How fast shuffled batches come out of a cache, per core: our reader, and four other ways to store the same arrays.

BERT-base's shapes, preset `balanced`, random numbers. Every contender gives the same batches (the plan's order: shuffled
within windows of four shards), as copies of the rows of their sequences, on one core; only how the arrays lie on disk and
get into memory differs:

    reader    shards of this project, decoded ahead by a process of its own (on the same core)
    zarrs     the same, decoded by the package zarrs
    zarr      the same, decoded by zarr-python
    blob      a bare zstd blob per array and shard, read and decompressed whole: no checksum, no check of a value
    reused    the same into memory that is used again, as our slots are: the least that any reader of these codecs can take
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
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from cache_of_noise import BALANCED, Shapes, build
from measure import Spread, arguments, finish, interleaved, one_core, ratio, rounds
from numcodecs import zstd
from numpy.typing import NDArray

from pipeline.summary import print_table
from stages.batch_plan import BatchPlan
from stages.batches import SHARD_MEMORY_BYTES, Wanted, slots_for
from storage import CacheReader, ShardArrays, ShardId, ShardLoader, decoded_bytes
from storage.arrays import ArraySpec, array_table
from storage.shard import Engine, assemble

GOALS = {"reader_vs_blob": ">= 1.0", "reader_zarrs_vs_blob": ">= 1.0", "reader_vs_random": ">= 7"}
BATCH = 32
EPOCHS = 3

PARQUET: dict[str, Any] = {"compression": "zstd", "compression_level": 1, "use_dictionary": False}

Arrays = dict[str, NDArray[Any]]
Batches = Generator[ShardArrays, None, None]


class ShardSource(Protocol):
    """Gives the shards of a window; what lies in an earlier window may be gone once a later one is asked for."""

    def get(self, window: int, shard: ShardId) -> ShardArrays:
        """The arrays of a shard."""


def gather(
    source: ShardSource, shards: list[ShardId], sequences: NDArray[np.int64], windows: NDArray[np.int64]
) -> ShardArrays:
    """Copies of the given sequences: (n, 2) shard numbers and places within, and (n,) their windows; by ascending shard."""
    parts: dict[int, ShardArrays] = {}
    for window in np.unique(windows):  # ascending, as a source wants it
        of_window = sequences[windows == window]
        for number in np.unique(of_window[:, 0]):
            arrays = source.get(int(window), shards[number])
            parts[number] = arrays.select(of_window[of_window[:, 0] == number, 1])
    return ShardArrays.concatenate([parts[number] for number in sorted(parts)])


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

    def shape(self, spec: ArraySpec, shard: ShardId) -> tuple[int, ...]:
        """Of one array of a shard."""
        return spec.shape(self.reader.shard_counts(shard))

    def batches(self, shards: ShardSource, epochs: int) -> Batches:
        """Copies of the rows of the plan's batches."""
        for step in range(epochs * self.plan.steps_per_epoch):
            yield gather(shards, self.shards, *self.plan.batch_and_windows(step))


class Kept:
    """Shards that are loaded whole when they are first needed; those of a window are kept."""

    def __init__(self, load: Callable[[ShardId, int], ShardArrays]) -> None:
        self._load, self._window = load, -1  # `load` is told the shard's place among those of its window
        self._kept: dict[ShardId, ShardArrays] = {}

    def get(self, window: int, shard: ShardId) -> ShardArrays:
        if window != self._window:
            self._kept.clear()
            self._window = window
        if shard not in self._kept:
            self._kept[shard] = self._load(shard, len(self._kept))
        return self._kept[shard]


def from_loader(cache: Cache, engine: Engine, epochs: int) -> Batches:
    """By the process of our own."""
    reader = CacheReader(cache.reader.folder, engine=engine)
    steps = epochs * cache.plan.steps_per_epoch
    order = (
        (window, cache.shards[number]) for window, _, numbers in cache.plan.windows(0, steps) for number in numbers
    )
    slots, slot_bytes = slots_for(reader, cache.plan, Wanted(hidden=True, logits=True), SHARD_MEMORY_BYTES)
    with ShardLoader(reader, order, slots=slots, slot_bytes=slot_bytes) as loader:
        MEMORY["process"] = loader.process_id or 0
        yield from cache.batches(loader, epochs)


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


def from_blobs(cache: Cache, epochs: int, *, reuse: bool) -> Batches:
    """Read, decompress, nothing else: no checksum, no check of a value. With `reuse`, into the memory of an earlier window."""
    memory: dict[tuple[int, str], NDArray[Any]] = {}
    buffer = np.empty(max(file.stat().st_size for file in cache.folder.glob("*.zst")), np.uint8)

    def load(shard: ShardId, place: int) -> ShardArrays:
        arrays = {}
        for spec in cache.table:
            file = cache.folder / f"{shard}.{spec.name}.zst"
            if not reuse:
                raw = np.frombuffer(zstd.decompress(file.read_bytes()), spec.dtype)
                arrays[spec.name] = raw.reshape(cache.shape(spec, shard))
                continue
            with file.open("rb", buffering=0) as source:
                size = source.readinto(buffer.data)
            if (place, spec.name) not in memory:
                memory[place, spec.name] = np.empty(cache.shape(spec, shard), spec.dtype)
            arrays[spec.name] = memory[place, spec.name]
            zstd.decompress(buffer[:size], arrays[spec.name])
        return assemble(cache.reader.description, shard, arrays)

    return cache.batches(Kept(load), epochs)


def from_npy(cache: Cache, epochs: int) -> Batches:
    """Memory-mapped: what a batch takes is read when it takes it."""

    def load(shard: ShardId, _: int) -> ShardArrays:
        arrays = {spec.name: np.load(cache.folder / f"{shard}.{spec.name}.npy", mmap_mode="r") for spec in cache.table}
        return assemble(cache.reader.description, shard, arrays)

    return cache.batches(Kept(load), epochs)


def from_parquet(cache: Cache, epochs: int) -> Batches:
    """Whole files by pyarrow, one thread; its pieces joined, and no copy into numpy."""

    def load(shard: ShardId, _: int) -> ShardArrays:
        table = pq.read_table(cache.folder / f"{shard}.parquet", use_threads=False).combine_chunks()
        raw: dict[str, Any] = {name: table.column(name).chunk(0).buffers()[1] for name in table.column_names}
        raw["sequence_offsets"] = np.arange(0, len(table) + 1, dtype="<u4") * np.uint32(cache.tokens_per_sequence)
        arrays = {
            spec.name: np.frombuffer(raw[spec.name], spec.dtype).reshape(cache.shape(spec, shard))
            for spec in cache.table
        }
        return assemble(cache.reader.description, shard, arrays)

    return cache.batches(Kept(load), epochs)


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
    start_of = {number: cache.reader.description.span(shard)[0] for number, shard in enumerate(cache.shards)}
    for step in range(epochs * cache.plan.steps_per_epoch):
        # As ours: by shard, and within a shard in the order of the batch.
        batch = cache.plan.batch(step)
        parts = []
        for number, place in batch[np.argsort(batch[:, 0], kind="stable")]:
            rows = slice(place * per_sequence, (place + 1) * per_sequence)
            found = {name: np.asarray(array[rows]) for name, array in arrays[int(number)].items()}
            parts.append(one_sequence(found, start_of[int(number)] + int(place)))
        yield ShardArrays.concatenate(parts)


def one_sequence(found: Arrays, sequence_id: int) -> ShardArrays:
    """The arrays of a sequence as the other contenders give them."""
    hidden = {name: found.pop(name) for name in ("hidden", "hidden_scale")}
    logits = {"top_gap": found.pop("top_gap")}
    rows = len(found["original_ids"])
    return ShardArrays(
        sequence_ids=np.array([sequence_id]),
        sequence_offsets=np.array([0, rows], np.uint32),
        row_token=np.arange(rows, dtype=np.uint32),
        row_offsets=np.array([0, rows]),
        hidden=hidden,
        hidden_layers=BALANCED.hidden_layers,
        logits=logits,
        **found,
    )


def refuse_differences(contenders: Mapping[str, Callable[[int], Batches]]) -> None:
    """Stop unless all contenders give the same first batches."""
    firsts = {name: list(islice(run(1), 3)) for name, run in contenders.items()}
    for name, batches in firsts.items():
        for found, expected in zip(batches, firsts["blob"], strict=True):
            for ours, theirs in zip(plain(found), plain(expected), strict=True):
                if not np.array_equal(ours, theirs):
                    raise SystemExit(f"{name} gives other batches than blob")


def plain(batch: ShardArrays) -> list[NDArray[Any]]:
    """All arrays of a batch."""
    values = {**vars(batch), **batch.hidden, **batch.logits}
    return [values[name] for name in sorted(values) if isinstance(values[name], np.ndarray)]


def tokens_per_second(cache: Cache, batches: Callable[[int], Batches], *, slow: bool) -> float:
    """From the third window of an epoch to before the last.

    None of its shards was in memory before, all memory has been used before, and as much was read ahead at the start of
    that time as at its end. A slow contender is timed on some batches of these.
    """
    windows = [int(cache.plan.batch_and_windows(step)[1][0]) for step in range(cache.plan.steps_per_epoch)]
    first, last = windows.index(2), windows.index(windows[-1])
    if slow:
        first, last = 1, 3
    running = batches(1)
    for _ in islice(running, first):
        pass
    started = time.perf_counter()
    tokens = sum(batch.tokens for batch in islice(running, last - first))
    seconds = time.perf_counter() - started
    running.close()
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
    running.close()
    return held


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    shapes = Shapes(shards=24, sequences_per_shard=32 if options.quick else 1024)
    # Pinned before any library starts its threads: they inherit it.
    with one_core(), tempfile.TemporaryDirectory() as scratch:
        reader = CacheReader(build(Path(scratch), shapes))
        counts = tuple(count for _, count in reader.description.splits["train"].shards)
        cache = Cache(reader, BatchPlan(counts, BATCH, seed=0, variants=1), Path(scratch))
        write_others(cache)
        contenders: dict[str, Callable[[int], Batches]] = {
            "reader": lambda epochs: from_loader(cache, "own", epochs),
            "zarrs": lambda epochs: from_loader(cache, "zarrs", epochs),
            "zarr": lambda epochs: from_loader(cache, "zarr", epochs),
            "blob": lambda epochs: from_blobs(cache, epochs, reuse=False),
            "reused": lambda epochs: from_blobs(cache, epochs, reuse=True),
            "npy": lambda epochs: from_npy(cache, epochs),
            "parquet": lambda epochs: from_parquet(cache, epochs),
            "random": lambda epochs: from_random_reads(cache, epochs),
        }

        def measured(name: str) -> Callable[[], float]:
            return lambda: tokens_per_second(cache, contenders[name], slow=name == "random")

        refuse_differences(contenders)
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
        "reader_vs_blob_reused": ratio(speeds["reader"], speeds["reused"]),
        "reader_vs_npy": ratio(speeds["reader"], speeds["npy"]),
        "reader_vs_parquet": ratio(speeds["reader"], speeds["parquet"]),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
