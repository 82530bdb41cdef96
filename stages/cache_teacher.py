"""Stage `cache-teacher`: run the teacher once over the tokens and publish its targets as a cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, closing

from stages.cache_location import push_cache
from stages.cache_origin import Origin
from stages.cache_report import report, report_part, reported
from stages.config import Config
from stages.context import Context
from stages.lasting_task import LastingTask
from stages.metrics_log import MetricsLog
from stages.sequences import TokenStore
from stages.sharing import Failed, Failures
from stages.teacher_job import OF_ONE_SHARD
from storage import (
    SPLITS,
    CacheDescription,
    CacheWork,
    CorruptError,
    IncompleteError,
    Part,
    ShardId,
    Split,
    verify_cache,
)
from storage.files import has_other_names
from storage.manifest import MANIFEST_FILE, RootManifest
from storage.reader import read_identity
from storage.remote import RemoteFolder, RemoteWork, finished_at, keep_manifest
from storage.remote.work import AGAIN
from storage.taken_back import keep_linked, linked_copy


def run(
    config: Config,
    context: Context,
    splits: Collection[Split] = SPLITS,
    *,
    verify: bool = False,
    part: Part | None = None,
) -> None:
    """Write `cache/current` and `cache/run.json`, computing only the shards that are not there yet.

    Those of a further teacher lie in `cache/teachers/<name>`, those of a task in `cache/tasks/<name>`: its teacher is the
    fine-tuned one, and its examples are encoded first (`data/tasks/<name>`).

    Work happens in `.cache-work/<fingerprint>`, which survives a kill; the finished cache is renamed into place. With a root,
    each shard goes to `<root>/<fingerprint>` as soon as it is whole, and `cache/manifest.json` is what stays here. The shards are
    computed where `context.runner` has it done. `splits`: a cache of these alone, as `pipeline cache pull --split` gives.
    `verify`: all that is at the root is read back and compared by SHA-256 first; what is damaged or missing is computed again
    and replaced. `part`: compute these shards alone, beside jobs that do the other parts, and leave it to a run without a
    part to finish the cache.

    Raises `InputError` where tokens or teacher are missing, do not fit each other, or were changed meanwhile, `ItemsError` where
    some shards could not be computed while the others were (NaN from the teacher, no memory left), `storage.LockedError` where
    another process writes this cache, `storage.errors.RemoteError` where the root fails.
    """
    started = time.monotonic()
    origin = Origin.find(config, context, splits)
    context, description = origin.context, origin.description
    artefacts = context.artefacts
    root_digest = _already_done(description, context, verify=verify, part=part)
    if root_digest is not None:
        if part is None and not reported(context, root_digest):  # killed between the cache's publication and its report
            report(config, context, description, root_digest, 0, time.monotonic() - started)
        return
    with _open_work(description, context, verify=verify, part=part) as work:
        if part is None:
            work.take_back(artefacts.cache)
            work.take_back(linked_copy(work.root, description.fingerprint))  # where DVC removed the other
            work.add_folder("tokenizer", origin.tokens.tokenizer_folder)
        missing = _missing(work, context, verify=verify)
        _compute(origin, work, missing)
        if part is not None:
            work.finish_part()
            report_part(work, part, context, len(missing), time.monotonic() - started)
            return
        # Each shard is of these tokens and this teacher. What is put down as the cache's origin must be them too.
        origin.require_unchanged()
        if artefacts.root is None and has_other_names(artefacts.tokens):
            # This project's files are hard links into DVC's store, and the cache's will be: these cost no room. To a DVC that copies
            # they would be a reason to copy once more.
            keep_linked(work.folder, work.root, description.fingerprint)
        root_digest = work.finish(artefacts.cache if artefacts.root is None else artefacts.tracked_manifest)
    if verify and not missing and reported(context, root_digest):  # how it was made is still true
        context.progress.message(f"{work.kept_in} is whole; root digest {root_digest[:12]}")
    else:
        report(config, context, description, root_digest, len(missing), time.monotonic() - started)


def _missing(work: CacheWork, context: Context, *, verify: bool) -> list[ShardId]:
    """The shards that are to be computed."""
    total = len(work.shards)
    task = f"read back what is {'at the root' if verify else 'there'}"
    kept = f"every shard that is whole is kept in {work.kept_in}"
    reading = LastingTask(context, task, total, "shards", kept=kept, after=0 if verify else None)
    missing = work.missing(
        lambda shard, damage: context.progress.message(f"{shard} is computed again: {damage}"),
        lambda _shard: reading(),
    )
    if len(missing) < total:
        begun = "read back" if verify else "resuming"
        context.progress.message(f"{begun}: {total - len(missing)} of {total} shards are there and whole")
    return missing


def _compute(origin: Origin, work: CacheWork, missing: Sequence[ShardId]) -> None:
    """Have the missing shards computed, and take in each as it is published."""
    description, context, tokens = origin.description, origin.context, origin.tokens
    kept = f"every finished shard of cache {description.fingerprint[:12]} is kept in {work.kept_in}"
    artefacts, job = context.artefacts, origin.job()
    total = sum(_tokens(tokens, description, shard) for shard in missing)
    context.progress.begin("cache the teacher", total, "tokens")
    context.stop_if_asked(kept)
    if not missing:
        if work.part is None and not job.head_is_there():
            with job.begin(context.place):  # it puts the teacher's head into the cache
                pass
        return
    failures = Failures(context.progress.message)
    log = MetricsLog(artefacts.cache_metrics(work.part), shards=len(missing), tokens=total)
    with closing(context.runner.run(job, missing, context.place)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                context.stop_if_asked(kept)  # which is why it gave up
                failures.add(outcome, OF_ONE_SHARD)
                continue
            manifest, done = work.take_in(outcome.item), _tokens(tokens, description, outcome.item)
            log.add(outcome.item, done, manifest)
            context.progress.advance(done, **log.figures())
            context.stop_if_asked(kept)
    failures.finish(kept)


def _open_work(
    description: CacheDescription, context: Context, *, verify: bool, part: Part | None
) -> AbstractContextManager[CacheWork]:
    """The unfinished cache, here or at the root."""
    artefacts = context.artefacts
    if artefacts.root is None:
        return CacheWork.open(artefacts.cache_work, description, part)
    root = RemoteFolder(artefacts.root, again=AGAIN)

    def uploaded(shard: ShardId) -> None:
        context.stop_if_asked(f"every shard up to {shard} is kept in {root.shown()} or {artefacts.cache_work}")

    return RemoteWork.open_at(root, artefacts.cache_work, description, uploaded, verify=verify, part=part)


def _already_done(description: CacheDescription, context: Context, *, verify: bool, part: Part | None) -> str | None:
    """The root digest of this very cache where it is finished, here or at the root; None where there is work to do.

    One that is whole in `cache/current` and belongs to a root is copied there. With `verify` the one at the root is not
    taken for whole. What one here is like is looked at by who finishes it, and not for each part.
    """
    artefacts, name = context.artefacts, description.fingerprint[:12]
    if artefacts.root is None:
        manifest = _whole_here(description, context, verified=part is None)
        if manifest is not None:
            context.progress.message(
                f"{artefacts.shown(artefacts.cache)} already holds this cache ({name}){', verified' if part is None else ''}; nothing to do"
            )
        return None if manifest is None else manifest.root_digest
    root = RemoteFolder(artefacts.root, again=AGAIN)
    manifest = None if verify else finished_at(root, description)
    if manifest is not None:
        context.progress.message(f"{root.shown()} already holds this cache ({name}); nothing to do")
    else:
        manifest = None if part else _whole_here(description, context)
        if manifest is None:
            return None
        context.progress.message(
            f"{artefacts.shown(artefacts.cache)} holds this cache ({name}): it is copied to {root.shown()}"
        )
        push_cache(context, artefacts.root, verify=verify)
    if part is None:
        keep_manifest(manifest, artefacts.tracked_manifest)
    return manifest.root_digest


def _whole_here(description: CacheDescription, context: Context, *, verified: bool = True) -> RootManifest | None:
    """What `cache/current` consists of, where it is this very cache, whole; its good shards are taken back otherwise.

    Not `verified`, it is taken for whole.
    """
    folder, shown = context.artefacts.cache, context.artefacts.shown(context.artefacts.cache)
    if not (folder / MANIFEST_FILE).is_file():
        return None
    try:
        found, manifest = read_identity(folder)
        if found.fingerprint != description.fingerprint:
            return None
        absent = [split for split in description.splits if split not in found.splits]
        if absent:
            context.progress.message(f"{shown} holds no {', '.join(absent)}: what it holds is kept and completed")
            return None
        if verified:
            size = sum(record.size for record in manifest.files.values())
            reading = LastingTask(context, f"read {shown}", size, "bytes", kept=f"{shown} is as it was")
            verify_cache(folder, progress=lambda _file, read: reading(read))
    except (CorruptError, IncompleteError) as error:
        context.progress.message(f"{shown} is not whole, and its good shards are kept: {error}")
        return None
    return manifest


def _tokens(tokens: TokenStore, description: CacheDescription, shard: ShardId) -> int:
    start, count = description.span(shard)
    return int(tokens.split(shard.split).lengths[start : start + count].sum())
