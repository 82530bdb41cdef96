"""What a cache says of itself, from its JSON files alone: no array is read and no folder is walked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage.description import CacheDescription
from storage.errors import CorruptError
from storage.identity import canonical_json
from storage.layout import FORMAT_VERSION, ShardId
from storage.manifest import Files, ShardManifest, manifest_file, sum_of_counts
from storage.reader import read_identity

KINDS = ("masked", "unmasked")
FIGURES = ("entropy", "retained_mass")


def cache_info(folder: Path) -> dict[str, Any]:
    """Identity, plan, counts, sizes and figures of a finished cache, as plain JSON.

    `splits` has for each split its `layout`, `shards`, the counts of each variant in `variants`, `bytes`,
    `bytes_per_position` by array, and per kind of position (`masked`, `unmasked`) the means by temperature of `entropy`
    (nats) and `retained_mass`, as far as its shards recorded them. Nothing is verified but the manifests themselves.

    Raises `IncompleteError`, `FormatError` or `CorruptError`.
    """
    description, manifest = read_identity(folder)
    shards = {shard: _read(folder, shard) for shard in description.shard_ids()}
    return {
        "folder": str(folder),
        "format_version": FORMAT_VERSION,
        "fingerprint": description.fingerprint,
        "root_digest": manifest.root_digest,
        "files": len(manifest.files),
        "bytes": sum(record.size for record in manifest.files.values()),
        "bytes_beside_shards": sum(
            record.size for name, record in manifest.files.items() if not name.startswith("shards/")
        ),
        "temperatures": list(description.temperatures),
        "vocabulary_size": description.vocabulary_size,
        "hidden_size": description.hidden_size,
        "spec": description.spec,
        "content": description.content,
        "computed_with": _distinct(found.computed_with for found in shards.values()),
        "splits": {split: _split_info(description, split, shards) for split in description.splits},
    }


def _split_info(description: CacheDescription, split: str, shards: Mapping[ShardId, ShardManifest]) -> dict[str, Any]:
    mine = {shard: found for shard, found in shards.items() if shard.split == split}
    variants: dict[str, dict[str, int]] = {
        str(variant): sum_of_counts(found.counts for shard, found in mine.items() if shard.variant == variant)
        for variant in sorted({shard.variant for shard in mine})
    }
    sizes = bytes_by_array({name: record for found in mine.values() for name, record in found.files.items()})
    positions = sum(counts["rows"] for counts in variants.values())
    return {
        "layout": next(found.layout.to_json() for name, found in description.splits.items() if name == split),
        "shards": len(mine),
        "variants": variants,
        "positions": positions,
        "bytes": sizes.total(),
        "bytes_per_position": {name: round(size / max(1, positions), 3) for name, size in sizes.most_common()},
        **{
            kind: means
            for kind in KINDS
            if (means := mean_figures([found.figures.get(kind) for found in mine.values()]))
        },
    }


def bytes_by_array(files: Files) -> Counter[str]:
    """Bytes of the files of shards, given by their paths in the cache, by array; `metadata` is the groups' own description."""
    sizes: Counter[str] = Counter()
    for name, record in files.items():
        _, _, array, *below = name.split("/")
        sizes[array if below else "metadata"] += record.size
    return sizes


def mean_figures(figures: Iterable[object]) -> dict[str, Any]:
    """Means of what shards recorded of their positions, weighted by the number of these.

    `positions`, and by temperature `entropy` (nats) and `retained_mass`; without what no shard recorded (an older cache).
    """
    known = [entry for entry in figures if isinstance(entry, Mapping) and entry.get("positions")]
    positions = sum(entry["positions"] for entry in known)
    means: dict[str, Any] = {"positions": positions} if known else {}
    for name in FIGURES:
        temperatures = known[0].get(name, {}) if known else {}
        of_all = [t for t in temperatures if all(t in entry.get(name, {}) for entry in known)]
        if of_all:
            means[name] = {
                t: round(sum(entry["positions"] * entry[name][t]["mean"] for entry in known) / positions, 5)
                for t in of_all
            }
    return means


def _distinct(values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each different value once, with the number of `shards` that have it, the most frequent first."""
    counted: dict[bytes, dict[str, Any]] = {}
    for value in values:
        counted.setdefault(canonical_json(value), {**value, "shards": 0})["shards"] += 1
    return sorted(counted.values(), key=lambda value: -value["shards"])


def _read(folder: Path, shard: ShardId) -> ShardManifest:
    name = manifest_file(shard)
    try:
        return ShardManifest.from_bytes(shard, (folder / name).read_bytes())
    except (OSError, CorruptError) as error:
        raise CorruptError(f"{folder / name} cannot be read: {error}; run `pipeline cache verify`") from error
