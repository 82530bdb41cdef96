"""Stage `cache-teacher`: run the teacher once over the tokens and publish its targets as a cache."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager

import torch

from stages.cache_description import describe
from stages.cache_figures import COLUMNS, TrainFigures, shard_figures
from stages.cache_location import push_cache
from stages.config import Config
from stages.context import Context
from stages.heads import Head
from stages.masking import Masker
from stages.models import load_masked_lm, require_model
from stages.outputs import write_csv, write_json
from stages.provenance import RESOLVED, write_resolved
from stages.sequences import TokenStore
from stages.teacher_targets import TargetsComputer, mask_shard
from storage import (
    SPLITS,
    CacheDescription,
    CacheReader,
    CacheWork,
    CorruptError,
    IncompleteError,
    ShardId,
    Split,
    verify_cache,
)
from storage.cache_info import KINDS
from storage.manifest import MANIFEST_FILE, RootManifest
from storage.reader import read_identity
from storage.remote import RemoteFolder, RemoteReader, RemoteWork, finished_at, keep_manifest
from storage.remote.work import AGAIN

SECTIONS = ("corpus", "tokenize", "masking", "teacher", "cache")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(config: Config, context: Context, splits: Collection[Split] = SPLITS, *, verify: bool = False) -> None:
    """Write `cache/current` and `cache/run.json`, computing only the shards that are not there yet.

    Work happens in `.cache-work/<fingerprint>`, which survives a kill; the finished cache is renamed into place. With a root,
    each shard goes to `<root>/<fingerprint>` as soon as it is whole, and `cache/manifest.json` is what stays here. `splits`: a
    cache of these alone, as `pipeline cache pull --split` gives. `verify`: all that is at the root is read back and compared by
    SHA-256 first; what is damaged or missing is computed again and replaced.

    Raises `InputError` where tokens or teacher are missing or do not fit each other, `storage.InvalidTargetsError` where the
    teacher gives what must not be stored (NaN), `storage.LockedError` where another process writes this cache,
    `storage.errors.RemoteError` where the root fails.
    """
    started = time.monotonic()
    artefacts = context.artefacts
    tokens = TokenStore.open(artefacts.tokens)
    require_model(artefacts.teacher, "the teacher", "pipeline teacher")
    description = describe(config, context, tokens, splits)
    root_digest = _already_done(description, context, verify=verify)
    if root_digest is not None:
        if not _reported(context, root_digest):  # killed between the cache's publication and its report
            _report(config, context, description, root_digest, 0, time.monotonic() - started)
        return
    teacher = load_masked_lm(
        artefacts.teacher,
        attention=config.cache.attention,
        dtype=_DTYPES[config.cache.precision],
        device=context.device,
    )
    computer = TargetsComputer(
        teacher,
        temperatures=description.temperatures,
        pad_id=description.pad_id,
        batch_tokens=config.cache.batch_tokens,
    )
    with _open_work(description, context, verify=verify) as work:
        work.take_back(artefacts.cache)
        for name, data in Head.of(teacher).files(_DTYPES[config.cache.head_dtype]).items():
            work.add_file(name, data)
        work.add_folder("tokenizer", tokens.tokenizer_folder)
        total = len(description.shard_ids())
        if verify:
            context.progress.begin("read back what is at the root", total, "shards")
        missing = work.missing(lambda shard, damage: context.progress.message(f"{shard} is computed again: {damage}"))
        if len(missing) < total:
            begun = "read back" if verify else "resuming"
            context.progress.message(f"{begun}: {total - len(missing)} of {total} shards are there and whole")
        context.progress.begin(
            "cache the teacher", sum(_tokens(tokens, description, shard) for shard in missing), "tokens"
        )
        maskers = {split: Masker.of(config.masking, tokens, split) for split in SPLITS}
        for shard in missing:
            context.stop_if_asked(
                f"every finished shard of cache {description.fingerprint[:12]} is kept in {work.kept_in}"
            )
            layout = description.splits[shard.split].layout
            seen = mask_shard(tokens, maskers[shard.split], shard, description.span(shard), seed=config.masking.seed)
            targets = computer.compute(seen, layout)
            rows = seen.rows(layout)
            masked = (seen.masked if rows is None else seen.masked[rows]) == 1
            figures = shard_figures(targets, masked, description.temperatures)
            written = work.publish(shard, targets, _computed_with(config, context), figures)
            context.progress.advance(len(seen.original_ids), shard=str(shard), megabytes=round(written / 1e6, 2))
        root_digest = work.finish(artefacts.cache if artefacts.root is None else artefacts.tracked_manifest)
    if verify and not missing and _reported(context, root_digest):  # how it was made is still true
        context.progress.message(f"{work.kept_in} is whole; root digest {root_digest[:12]}")
    else:
        _report(config, context, description, root_digest, len(missing), time.monotonic() - started)


def _open_work(description: CacheDescription, context: Context, *, verify: bool) -> AbstractContextManager[CacheWork]:
    """The unfinished cache, here or at the root."""
    artefacts = context.artefacts
    if artefacts.root is None:
        return CacheWork.open(artefacts.cache_work, description)
    root = RemoteFolder(artefacts.root, again=AGAIN)

    def uploaded(shard: ShardId) -> None:
        context.stop_if_asked(f"every shard up to {shard} is kept in {root.shown()} or {artefacts.cache_work}")

    def looked(_shard: ShardId) -> None:
        if verify:  # that takes as long as the cache is large
            context.progress.advance()
            context.stop_if_asked(f"what is at {root.shown()} is as it was")

    return RemoteWork.open_at(root, artefacts.cache_work, description, uploaded, looked, verify=verify)


def _already_done(description: CacheDescription, context: Context, *, verify: bool) -> str | None:
    """The root digest of this very cache where it is finished, here or at the root; None where there is work to do.

    One that is whole in `cache/current` and belongs to a root is copied there. With `verify` the one at the root is not
    taken for whole.
    """
    artefacts, name = context.artefacts, description.fingerprint[:12]
    if artefacts.root is None:
        manifest = _whole_here(description, context)
        if manifest is not None:
            context.progress.message(f"cache/current already holds this cache ({name}), verified; nothing to do")
        return None if manifest is None else manifest.root_digest
    root = RemoteFolder(artefacts.root, again=AGAIN)
    manifest = None if verify else finished_at(root, description)
    if manifest is not None:
        context.progress.message(f"{root.shown()} already holds this cache ({name}); nothing to do")
    else:
        manifest = _whole_here(description, context)
        if manifest is None:
            return None
        context.progress.message(f"cache/current holds this cache ({name}): it is copied to {root.shown()}")
        push_cache(context, artefacts.root, verify=verify)
    keep_manifest(manifest, artefacts.tracked_manifest)
    return manifest.root_digest


def _whole_here(description: CacheDescription, context: Context) -> RootManifest | None:
    """What `cache/current` consists of, where it is this very cache, whole; its good shards are taken back otherwise."""
    folder = context.artefacts.cache
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        found, manifest = read_identity(folder)
        if found.fingerprint != description.fingerprint:
            return None
        absent = [split for split in description.splits if split not in found.splits]
        if absent:
            context.progress.message(f"cache/current holds no {', '.join(absent)}: what it holds is kept and completed")
            return None
        verify_cache(folder)
    except (CorruptError, IncompleteError) as error:
        context.progress.message(f"cache/current is not whole, and its good shards are kept: {error}")
        return None
    return manifest


def _tokens(tokens: TokenStore, description: CacheDescription, shard: ShardId) -> int:
    start, count = description.span(shard)
    return int(tokens.split(shard.split).lengths[start : start + count].sum())


def _computed_with(config: Config, context: Context) -> dict[str, str | int]:
    """What may change the last bits of a shard. No time and no host: it is part of the cache."""
    return {
        "batch_tokens": config.cache.batch_tokens,
        "device": torch.device(context.device).type,
        "threads": context.threads,
        "torch": torch.__version__.split("+")[0],
    }


def _reported(context: Context, root_digest: str) -> bool:
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


def _report(
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
    write_resolved(artefacts.cache_run.with_name(RESOLVED), config, *SECTIONS)
    write_json(artefacts.cache_run, run_figures)  # last: where it is, the others are
    mass = ", ".join(f"{kept:.3f} at T = {t}" for t, kept in train.retained_mass().items())
    context.progress.summary(
        "teacher cache",
        {
            "fingerprint": reader.description.fingerprint[:12],
            "root digest": root_digest[:12],
            **{f"{split} positions": count for split, count in rows.items()},
            "megabytes": round(size / 1e6, 1),
            "bytes per train position": train.total_bytes_per_position(),
            "retained mass": mass or "no logits kept",
            "shards computed": f"{computed} of {len(reader.description.shard_ids())} in this start",
            "seconds": f"{seconds:.1f} in this start",
        },
    )
