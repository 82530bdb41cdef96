"""What `cache-teacher` leaves beside the cache: figures to compare, the parameters, and what it says in the end."""

from __future__ import annotations

import json
import sys

from stages.cache_figures import COLUMNS, TrainFigures
from stages.config import Config
from stages.context import Artefacts, Context
from stages.outputs import write_csv, write_json
from stages.provenance import RESOLVED, write_resolved
from storage import CacheDescription, CacheReader, CacheWork, Part
from storage.cache_info import KINDS
from storage.manifest import MANIFEST_FILE
from storage.remote import RemoteFolder, RemoteReader

SECTIONS = ("corpus", "tokenize", "masking", "teacher", "cache")
OF_TASK = ("finetune", "cache")


def reported(context: Context, root_digest: str) -> bool:
    """Whether the figures beside the cache are there and are of this cache."""
    artefacts = context.artefacts
    try:
        figures = json.loads(artefacts.cache_figures.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = (artefacts.cache_run, artefacts.cache_distributions, artefacts.cache_run.with_name(RESOLVED))
    return figures.get("root_digest") == root_digest and all(file.is_file() for file in files)


def _published(description: CacheDescription, context: Context) -> CacheReader:
    """The finished cache, open for what its manifests say."""
    artefacts = context.artefacts
    if artefacts.root is None:
        return CacheReader(artefacts.cache)
    url = RemoteFolder(artefacts.root).below(description.fingerprint).url
    return RemoteReader(url, artefacts.local_shards, limit_bytes=sys.maxsize)  # no shard is read


def report_part(work: CacheWork, part: Part, context: Context, computed: int, seconds: float) -> None:
    """Say what this start did of its part."""
    context.progress.summary(
        f"part {part} of the teacher cache",
        {
            "fingerprint": work.description.fingerprint[:12],
            "shards computed": f"{computed} of {len(work.shards)} in this start",
            "seconds": f"{seconds:.1f} in this start",
            "kept in": work.kept_in,
            "once all parts are done": f"`{context.artefacts.cache_command}` finishes the cache",
        },
    )


def report(
    config: Config, context: Context, description: CacheDescription, root_digest: str, computed: int, seconds: float
) -> None:
    """Write cache/run.json (what one compares between runs), figures.json, distributions.csv and the parameters."""
    artefacts = context.artefacts
    reader = _published(description, context)
    train = TrainFigures(reader)
    size = sum(record.size for record in reader.files.values()) + (reader.folder / MANIFEST_FILE).stat().st_size
    rows = {split: counts["rows"] for split, counts in reader.counts.items()}
    run_figures = {
        "bytes": size,
        "bytes_per_train_position": train.total_bytes_per_position(),
        "retained_mass": train.retained_mass(),
        "shards_computed": computed,
        "seconds": round(seconds, 1),
    }
    figures = {
        "fingerprint": reader.description.fingerprint,
        "root_digest": root_digest,
        "positions": rows,
        "bytes_per_position": train.bytes_per_position(),
        **{kind: train.of(kind) for kind in KINDS},
    }
    write_json(artefacts.cache_figures, figures)
    write_csv(artefacts.cache_distributions, COLUMNS, train.histograms())
    write_resolved(artefacts.cache_run.with_name(RESOLVED), config, *(SECTIONS if artefacts.task is None else OF_TASK))
    write_json(artefacts.cache_run, run_figures)  # last: where it is, the others are
    mass = ", ".join(f"{kept:.3f} at T = {t}" for t, kept in train.retained_mass().items())
    context.progress.summary(
        _title(artefacts),
        {
            "fingerprint": reader.description.fingerprint[:12],
            "root digest": root_digest[:12],
            **{f"{split} positions": count for split, count in rows.items()},
            "megabytes": round(size / 1e6, 1),
            "bytes per train position": train.total_bytes_per_position(),
            **({"retained mass": mass or "no logits kept"} if artefacts.task is None else {}),
            "shards computed": f"{computed} of {len(reader.description.shard_ids())} in this start",
            "seconds": f"{seconds:.1f} in this start",
        },
    )


def _title(artefacts: Artefacts) -> str:
    if artefacts.task is not None:
        return f"cache of the task {artefacts.task}"
    name = artefacts.further_teacher
    return "teacher cache" if name is None else f"cache of the teacher {name}"
