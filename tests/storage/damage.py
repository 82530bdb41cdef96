"""Ways to damage a finished cache, for tests."""

from __future__ import annotations

import json
from pathlib import Path

from storage import ShardId, canonical_json
from storage.manifest import FileRecord, RootManifest, files_below

SHARD = ShardId("train", 0, 1)
GROUP = f"shards/{SHARD}.zarr"


def vouch_for_what_is_there(cache: Path) -> None:
    """Rewrite both manifests for the files as they are: damage that only the arrays themselves can show."""
    path = cache / "manifest" / f"{SHARD}.json"
    value = json.loads(path.read_bytes())
    records = files_below(cache, cache / GROUP)
    value["files"] = {name: {"size": record.size, "sha256": record.sha256} for name, record in records.items()}
    path.write_bytes(canonical_json(value) + b"\n")
    root = RootManifest.from_bytes((cache / "manifest.json").read_bytes())
    files = {name: record for name, record in root.files.items() if not name.startswith(GROUP)}
    files.update(records)
    files[f"manifest/{SHARD}.json"] = FileRecord.of_file(path)
    manifest = RootManifest(fingerprint=root.fingerprint, counts=root.counts, files=dict(sorted(files.items())))
    (cache / "manifest.json").write_bytes(manifest.to_bytes())


def chunk_file(cache: Path, array: str) -> Path:
    (file,) = [path for path in (cache / GROUP / array).rglob("*") if path.is_file() and path.name != "zarr.json"]
    return file


def flip_a_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 0x10
    path.write_bytes(data)
