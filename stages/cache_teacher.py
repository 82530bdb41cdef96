"""Stage `cache-teacher`: run the teacher once over the tokens and publish its targets as a cache."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from typing import Any

import numpy as np

from stages.cache_figures import ShardsSoFar
from stages.cache_location import push_cache
from stages.cache_report import report, report_part, reported
from stages.config import Config, cache_spec, check_teacher_layers, to_plain
from stages.config.base import refuse
from stages.context import Context
from stages.errors import InputError
from stages.models import load_model_config, load_tokenizer, require_model, weights_digest
from stages.provenance import RESOLVED, read_resolved
from stages.sequences import TokenStore
from stages.sharing import Failed, Failures
from stages.teacher_fit import check_teacher_fits
from stages.teacher_job import TeacherJob
from storage import (
    SPLITS,
    CacheDescription,
    CacheWork,
    CorruptError,
    IncompleteError,
    InvalidTargetsError,
    Part,
    ShardId,
    Split,
    SplitDescription,
    differing_fields,
    verify_cache,
)
from storage.manifest import MANIFEST_FILE, RootManifest
from storage.reader import read_identity
from storage.remote import RemoteFolder, RemoteWork, finished_at, keep_manifest
from storage.remote.work import AGAIN


def run(
    config: Config,
    context: Context,
    splits: Collection[Split] = SPLITS,
    *,
    verify: bool = False,
    part: Part | None = None,
) -> None:
    """Write `cache/current` and `cache/run.json`, computing only the shards that are not there yet.

    Work happens in `.cache-work/<fingerprint>`, which survives a kill; the finished cache is renamed into place. With a root,
    each shard goes to `<root>/<fingerprint>` as soon as it is whole, and `cache/manifest.json` is what stays here. The shards are
    computed where `context.runner` has it done. `splits`: a cache of these alone, as `pipeline cache pull --split` gives.
    `verify`: all that is at the root is read back and compared by SHA-256 first; what is damaged or missing is computed again
    and replaced. `part`: compute these shards alone, beside jobs that do the other parts, and leave it to a run without a
    part to finish the cache.

    Raises `InputError` where tokens or teacher are missing or do not fit each other, `ItemsError` where some shards could not
    be computed while the others were (NaN from the teacher), `storage.LockedError` where another process writes this cache,
    `storage.errors.RemoteError` where the root fails.
    """
    started = time.monotonic()
    artefacts = context.artefacts
    tokens = TokenStore.open(artefacts.tokens)
    require_model(artefacts.teacher, "the teacher", "pipeline teacher")
    description = describe(config, context, tokens, splits)
    root_digest = _already_done(description, context, verify=verify, part=part)
    if root_digest is not None:
        if part is None and not reported(context, root_digest):  # killed between the cache's publication and its report
            report(config, context, description, root_digest, 0, time.monotonic() - started)
        return
    with _open_work(description, context, verify=verify, part=part) as work:
        if part is None:
            work.take_back(artefacts.cache)
            work.add_folder("tokenizer", tokens.tokenizer_folder)
        missing = _missing(work, context, verify=verify)
        _compute(config, context, tokens, work, missing)
        if part is not None:
            work.finish_part()
            report_part(work, part, context, len(missing), time.monotonic() - started)
            return
        root_digest = work.finish(artefacts.cache if artefacts.root is None else artefacts.tracked_manifest)
    if verify and not missing and reported(context, root_digest):  # how it was made is still true
        context.progress.message(f"{work.kept_in} is whole; root digest {root_digest[:12]}")
    else:
        report(config, context, description, root_digest, len(missing), time.monotonic() - started)


def _missing(work: CacheWork, context: Context, *, verify: bool) -> list[ShardId]:
    """The shards that are to be computed."""
    total = len(work.shards)
    if verify:
        context.progress.begin("read back what is at the root", total, "shards")
    missing = work.missing(lambda shard, damage: context.progress.message(f"{shard} is computed again: {damage}"))
    if len(missing) < total:
        begun = "read back" if verify else "resuming"
        context.progress.message(f"{begun}: {total - len(missing)} of {total} shards are there and whole")
    return missing


def _compute(config: Config, context: Context, tokens: TokenStore, work: CacheWork, missing: Sequence[ShardId]) -> None:
    """Have the missing shards computed, and take in each as it is published."""
    description = work.description
    kept = f"every finished shard of cache {description.fingerprint[:12]} is kept in {work.kept_in}"
    artefacts = replace(context.artefacts, project=context.artefacts.project.absolute())
    job = TeacherJob(artefacts=artefacts, description=description, config=config)
    context.progress.begin("cache the teacher", sum(_tokens(tokens, description, shard) for shard in missing), "tokens")
    context.stop_if_asked(kept)
    if not missing:
        with job.begin(context.place):  # it puts the teacher's head into the cache, where that is lost or damaged
            return
    failures, so_far = Failures(context.progress.message), ShardsSoFar()
    with closing(context.runner.run(job, missing, context.place)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                context.stop_if_asked(kept)  # which is why it gave up
                failures.add(outcome, (InvalidTargetsError,))
                continue
            so_far.add(work.take_in(outcome.item))
            context.progress.advance(
                _tokens(tokens, description, outcome.item), shard=str(outcome.item), **so_far.figures()
            )
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

    def looked(_shard: ShardId) -> None:
        if verify:  # that takes as long as the cache is large
            context.progress.advance()
            context.stop_if_asked(f"what is at {root.shown()} is as it was")

    return RemoteWork.open_at(root, artefacts.cache_work, description, uploaded, looked, verify=verify, part=part)


def describe(
    config: Config, context: Context, tokens: TokenStore, splits: Collection[Split] = SPLITS
) -> CacheDescription:
    """Identity, layouts and shard plan of the cache that these parameters, tokens and teacher give.

    Raises `InputError` or `ConfigError` where they do not fit each other, before any work.
    """
    teacher_config = load_model_config(context.artefacts.teacher)
    vocabulary_size, layers = teacher_config["vocab_size"], teacher_config["num_hidden_layers"]
    folder = context.artefacts.teacher
    own = load_tokenizer(folder) if (folder / "tokenizer_config.json").is_file() else None
    check_teacher_fits(str(folder), teacher_config, own, tokens)
    _check_origin(config, context)
    if config.cache.train_top_k > vocabulary_size:
        raise refuse("cache.top_k", config.cache.train_top_k, f"at most the teacher's vocabulary ({vocabulary_size})")
    if config.cache.train_top_k == vocabulary_size and config.cache.rungs["draw_from"] == "tail":
        raise refuse("cache.draw_from", "tail", f"all, as cache.top_k is the whole vocabulary ({vocabulary_size})")
    check_teacher_layers(config.train, config.cache, layers)
    return CacheDescription(
        spec=cache_spec(config),
        content={"teacher": weights_digest(context.artefacts.teacher), **tokens.content_digests()},
        temperatures=config.cache.declared_temperatures,
        vocabulary_size=vocabulary_size,
        hidden_size=teacher_config["hidden_size"],
        special_tokens=dict(tokens.special_tokens),
        teacher_config=teacher_config,
        splits={split: _describe_split(config, tokens, split, teacher_config) for split in SPLITS if split in splits},
    )


def _check_origin(config: Config, context: Context) -> None:
    """Refuse documents, tokens or a teacher made with other parameters than these: the cache's `spec` would not be true.

    A folder that no stage of ours made says nothing of its parameters; its digest is part of the identity all the same.
    """
    trained = ("teacher",) if config.teacher.training is None else ("teacher", "masking")
    artefacts = context.artefacts
    for folder, sections, command in (
        (artefacts.documents, ("corpus",), "corpus"),
        (artefacts.tokens, ("tokenize",), "tokenize"),
        (artefacts.teacher, trained, "teacher"),
    ):
        if not (folder / RESOLVED).is_file():
            continue
        found = read_resolved(folder, f"pipeline {command}")
        differences = differing_fields(
            {name: to_plain(getattr(config, name)) for name in sections},
            {name: found.get(name) for name in sections},
            found_in="there",
        )
        if differences:
            raise InputError(
                f"{folder} was made with other parameters: {'; '.join(differences)}; run: pipeline {command}, and what follows it"
            )


def _describe_split(
    config: Config, tokens: TokenStore, split: Split, teacher_config: Mapping[str, Any]
) -> SplitDescription:
    lengths = tokens.split(split).lengths
    wanted = getattr(config.cache.sequences, split)
    if wanted is not None and wanted > len(lengths):
        raise refuse(f"cache.sequences.{split}", wanted, f"null or at most the {len(lengths)} sequences in data/tokens")
    lengths = lengths[:wanted].astype(np.int64)
    # A shard is cut where the running token count passes a multiple of shard_tokens.
    number = (np.cumsum(lengths) - lengths) // config.cache.shard_tokens
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    counts = np.diff(starts, append=len(lengths))
    return SplitDescription(
        layout=config.cache.layout(
            split,
            teacher_layers=teacher_config["num_hidden_layers"],
            hidden_size=teacher_config["hidden_size"],
            vocabulary_size=teacher_config["vocab_size"],
        ),
        variants=config.masking.variants if split == "train" else 1,
        sequences=len(lengths),
        tokens=int(lengths.sum()),
        shards=tuple(zip(starts.tolist(), counts.tolist(), strict=True)),
    )


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
                f"cache/current already holds this cache ({name}){', verified' if part is None else ''}; nothing to do"
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
        context.progress.message(f"cache/current holds this cache ({name}): it is copied to {root.shown()}")
        push_cache(context, artefacts.root, verify=verify)
    if part is None:
        keep_manifest(manifest, artefacts.tracked_manifest)
    return manifest.root_digest


def _whole_here(description: CacheDescription, context: Context, *, verified: bool = True) -> RootManifest | None:
    """What `cache/current` consists of, where it is this very cache, whole; its good shards are taken back otherwise.

    Not `verified`, it is taken for whole.
    """
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
        if verified:
            verify_cache(folder)
    except (CorruptError, IncompleteError) as error:
        context.progress.message(f"cache/current is not whole, and its good shards are kept: {error}")
        return None
    return manifest


def _tokens(tokens: TokenStore, description: CacheDescription, shard: ShardId) -> int:
    start, count = description.span(shard)
    return int(tokens.split(shard.split).lengths[start : start + count].sum())
