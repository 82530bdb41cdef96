"""What shards of a layout cost on disk, measured on one that was written: bytes by what an array is as long as.

Compression is a property of the data: it is measured on a sample and not guessed. What is compressed grows with the
sequences, tokens or rows; what describes a shard (metadata, its manifest, its lines in manifest.json) comes once per shard.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.arrays import Axis, array_table
from storage.cache_info import bytes_by_array
from storage.codecs import encode_hidden, encode_logits
from storage.description import CacheDescription, SplitDescription
from storage.layout import Layout, ShardId, Split
from storage.manifest import (
    CACHE_FILE,
    FileRecord,
    Files,
    RootManifest,
    ShardManifest,
    json_file,
    manifest_file,
    shard_folder,
)
from storage.shard import read_shard
from storage.work import CacheWork

Arrays = Mapping[str, NDArray[Any]]

_GROWS_WITH: dict[Axis, str] = {
    "offsets": "sequences",
    "sequences": "sequences",
    "tokens": "tokens",
    "rows": "rows",
    "entries": "rows",
    "draws": "rows",
}
_READS = 3
"""How often the sample is decoded; the median counts."""


@dataclass(frozen=True, kw_only=True)
class ShardCost:
    """What shards of one layout cost."""

    arrays: dict[str, tuple[str, float]]
    """By array: what it grows with (`sequences`, `tokens`, `rows`) and the bytes for each of these."""
    fixed_bytes: int
    """Per shard: Zarr metadata, the shard's manifest, and its lines in manifest.json."""
    read_seconds_per_row: float
    """To read and decode, on one core, from the page cache."""

    def by_array(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Bytes of each array over all shards that hold `counts` (sequences, tokens, rows) together."""
        return {name: each * counts[unit] for name, (unit, each) in self.arrays.items()}

    def total(self, counts: Mapping[str, float], shards: int) -> int:
        """Bytes of `shards` shards that hold `counts` together, with all that describes them."""
        return round(sum(self.by_array(counts).values()) + shards * self.fixed_bytes)


def shard_cost(
    folder: Path,
    description: CacheDescription,
    split: Split,
    layout: Layout,
    arrays: Arrays,
    figures: dict[str, Any],
) -> ShardCost:
    """Write encoded arrays as a shard below `folder`, which is left as it was, and weigh it.

    `description` is that of the cache to be: fingerprint and temperatures are its own, the plan is one shard of these arrays.
    """
    sequences, tokens = len(arrays["sequence_offsets"]) - 1, len(arrays["original_ids"])
    plan = SplitDescription(layout=layout, variants=1, sequences=sequences, tokens=tokens, shards=((0, sequences),))
    sample, shard = replace(description, splits={split: plan}), ShardId(split, 0, 0)
    counts = {"sequences": sequences, "tokens": tokens, "rows": _rows(arrays)}
    counts["masked"] = int(np.count_nonzero(arrays["masked"]))
    for name, ids in (("entries", "top_ids"), ("draws", "draw_ids")):
        if ids in arrays and arrays[ids].ndim == 1:
            counts[name] = len(arrays[ids])
    with TemporaryDirectory(dir=folder) as below, CacheWork.open(Path(below), sample) as work:
        work.store(shard, arrays, counts, {}, figures)
        data = (work.folder / manifest_file(shard)).read_bytes()
        manifest = ShardManifest.from_bytes(shard, data)
        seconds = []
        for _ in range(_READS):
            started = time.perf_counter()
            read_shard(
                work.folder / shard_folder(shard), sample, shard, counts=counts, teacher_saw=manifest.teacher_saw
            )
            seconds.append(time.perf_counter() - started)
    metadata = {name: record for name, record in manifest.files.items() if name.endswith("/zarr.json")}
    sizes = bytes_by_array({name: record for name, record in manifest.files.items() if name not in metadata})
    lines = {**manifest.files, manifest_file(shard): FileRecord.of_bytes(data)}
    units = {spec.name: _GROWS_WITH[spec.axis] for spec in array_table(sample, layout)}
    return ShardCost(
        arrays={name: (unit, sizes[name] / max(1, counts[unit])) for name, unit in units.items()},
        fixed_bytes=sum(record.size for record in metadata.values())
        + len(data)
        + manifest_bytes(lines)
        - manifest_bytes({}),
        read_seconds_per_row=statistics.median(seconds) / max(1, counts["rows"]),
    )


def _rows(arrays: Arrays) -> int:
    return len(arrays["stat" if "stat" in arrays else "original_ids"])  # of a task every token is a row


def bytes_beside_shards(description: CacheDescription, files: Mapping[str, bytes], tokenizer: Path) -> int:
    """Bytes of what a cache holds once: cache.json, `files` (the head's), the tokenizer's folder, and manifest.json's lines for them."""
    records = {name: FileRecord.of_bytes(data) for name, data in files.items()}
    records[CACHE_FILE] = FileRecord.of_bytes(json_file(description.to_json()))
    for path in tokenizer.rglob("*"):
        if path.is_file():
            records[f"tokenizer/{path.relative_to(tokenizer).as_posix()}"] = FileRecord.of_file(path)
    return sum(record.size for record in records.values()) + manifest_bytes(records)


def manifest_bytes(files: Files) -> int:
    """Bytes of a manifest.json that lists these files."""
    return len(RootManifest(fingerprint="0" * 64, counts={}, files=files).to_bytes())


def merged(parts: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """The encoded arrays of one shard, of those of several with the same layout, one after the other."""
    starts = np.cumsum([0, *(len(part["original_ids"]) for part in parts)])
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "sequence_offsets"}
    ends = [part["sequence_offsets"][1:] + start for part, start in zip(parts, starts, strict=False)]
    arrays["sequence_offsets"] = np.concatenate([[0], *ends]).astype(np.uint32)
    if "row_token" in arrays:
        shifted = [part["row_token"] + start for part, start in zip(parts, starts, strict=False)]
        arrays["row_token"] = np.concatenate(shifted).astype(np.uint32)
    return arrays


def recoded(
    arrays: Arrays, temperatures: tuple[float, ...], description: CacheDescription, layout: Layout
) -> dict[str, NDArray[Any]]:
    """Arrays as a shard of `layout` holds them, of those of a shard that holds more, in float32.

    `arrays` are for `temperatures`, and hold the hidden states, at least as many logits, and the draws of `layout`;
    `description` has the temperatures to keep. Thresholds and vectors of attention are not derived.
    """
    columns = [0]
    for temperature in description.temperatures:
        first = 1 + 2 * temperatures.index(temperature)
        columns += [first, first + 1]
    result = {**arrays, "stat": arrays["stat"][:, columns]}
    if layout.logits != "none":
        result["top_ids"] = arrays["top_ids"][:, : layout.top_k]
        result.update(encode_logits(layout, np.ascontiguousarray(arrays["top_logits"][:, : layout.top_k])))
    if layout.hidden != "none":
        result.update(encode_hidden(layout, arrays["hidden"]))
    table = array_table(description, layout)
    return {spec.name: np.ascontiguousarray(result[spec.name], dtype=spec.dtype) for spec in table}
