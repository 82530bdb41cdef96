"""`pipeline cache repair`: what is bad in a cache is computed once more, and the cache is what it was, bit for bit.

The work is that of `pipeline cache-teacher`, which keeps every shard that is whole. Around it, this looks first (deeply), makes
sure that teacher, tokens, parameters and hardware are those of the cache, and afterwards compares the root digests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache_verify import print_problems, run_checks
from stages import cache_teacher
from stages import device as tensor_device
from stages.against_teacher.agreement import hardware
from stages.cache_origin import Origin
from stages.config import Config
from stages.context import Context
from stages.outputs import write_text
from storage import (
    SPLITS,
    CacheDescription,
    CacheReader,
    CacheWork,
    ShardId,
    Split,
    canonical_json,
    differing_fields,
)
from storage.cache_check import CacheCheck
from storage.errors import CacheError, CorruptError, IncompleteError, MismatchError, make_or_fetch
from storage.manifest import CACHE_FILE, manifest_file
from storage.taken_back import fingerprint_at, read_root_manifest, root_digest_before


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is to repair."""

    unfit: list[ShardId]
    """Whole shards that cannot be read all the same."""
    bad: int
    computed_with: Mapping[str, Any]
    """Of the shards to be computed again; empty where nothing says it."""


def repair(config: Config, context: Context, *, inexact: bool) -> None:
    """Find what is bad in cache/current and put it right; `inexact` allows another device, torch or shards that disagree.

    Raises `MismatchError`, naming the fields, where the cache is not the one that these parameters, tokens and teacher give,
    `IncompleteError` where there is none, `CorruptError` where the repaired cache is whole and yet not the one from before.
    """
    origin = Origin.find(config, context)
    context, description = origin.context, origin.description
    artefacts = context.artefacts
    work = artefacts.cache_work / description.fingerprint
    resumed = not _holds_something(artefacts.cache)
    if resumed and not work.is_dir():
        raise IncompleteError(f"{artefacts.cache} holds no cache; {make_or_fetch(artefacts.cache_command)}")
    folder = work if resumed else artefacts.cache
    splits = _splits_at(folder)
    description = replace(
        description, splits={split: found for split, found in description.splits.items() if split in splits}
    )
    if not resumed:
        _refuse_another(folder, description)
    found = _look(folder, context, description, resumed=resumed)
    if found is None:
        context.progress.message(f"{artefacts.cache} is whole; there is nothing to repair")
        return
    config, context = as_it_was_computed(config, context, found, inexact=inexact)
    before = root_digest_before(artefacts.cache, artefacts.cache_work, description.fingerprint)
    report = artefacts.cache_run.read_text(encoding="utf-8") if artefacts.cache_run.is_file() else None

    with CacheWork.open(artefacts.cache_work, description) as opened:
        opened.take_back(artefacts.cache)
        for shard in found.unfit:
            opened.reject(shard)
    cache_teacher.run(config, context, splits)
    _compare(context, before, report, inexact=inexact)


def _splits_at(folder: Path) -> list[Split]:
    """The splits of the cache in `folder`: one that was pulled with some of them is repaired as such."""
    try:
        return list(CacheDescription.from_bytes((folder / CACHE_FILE).read_bytes()).splits)
    except (OSError, CacheError):
        manifest = read_root_manifest(folder)
    return [split for split in SPLITS if manifest is None or split in manifest.counts]


def _look(folder: Path, context: Context, description: CacheDescription, *, resumed: bool) -> Found | None:
    """What is bad in `folder`; None where nothing is. In the work folder of a repair that was killed, it is not said again."""
    check = CacheCheck(folder, description=description, workers=context.threads)
    run_checks(check, context, deep=True)
    if not check.problems:
        return None
    if resumed:
        context.progress.message(f"going on with the cache in {folder}")
    else:
        print_problems(check)
    bad = check.bad_shards
    damaged = {problem.file for problem in check.problems}
    believed = {
        shard: manifest.computed_with for shard, manifest in check.shards.items() if manifest_file(shard) not in damaged
    }
    known = [believed[shard] for shard in bad if shard in believed] or list(believed.values())
    return Found(unfit=check.unfit, bad=len(bad), computed_with=_most_common(known))


def _most_common(values: list[dict[str, Any]]) -> Mapping[str, Any]:
    if not values:
        return {}
    counts = Counter(map(canonical_json, values))
    return max(values, key=lambda value: counts[canonical_json(value)])


def _refuse_another(folder: Path, description: CacheDescription) -> None:
    """Raise `MismatchError` unless the cache in `folder` is the described one."""
    try:
        found = CacheDescription.from_bytes((folder / CACHE_FILE).read_bytes())
    except (OSError, CacheError):
        fingerprint = fingerprint_at(folder)
        if fingerprint == description.fingerprint:
            return
        fields: tuple[str, ...] = (f"fingerprint: {fingerprint} expected, {description.fingerprint} here",)
    else:
        fields = differing_fields(found.to_json(), description.to_json(), found_in="here")
    if fields:
        raise MismatchError(
            f"the parameters, tokens or teacher at hand are not those that {folder} was made with: {'; '.join(fields)}; "
            "get those (`git checkout` and `dvc checkout`), or make another cache with `pipeline cache-teacher`",
            fields,
        )


def as_it_was_computed(config: Config, context: Context, found: Found, *, inexact: bool) -> tuple[Config, Context]:
    """Parameters and context with the batch size, the compiler or not, and the number of threads that give the same bits.

    Raises `MismatchError` where the rest of the hardware is another one and `inexact` does not allow that.
    """
    recorded = found.computed_with
    if not found.bad or not recorded:
        return config, context
    config = replace(config, cache=replace(config.cache, compile=bool(recorded.get("compiled"))))
    if isinstance(recorded.get("batch_tokens"), int):
        config = replace(config, cache=replace(config.cache, batch_tokens=recorded["batch_tokens"]))
    if isinstance(recorded.get("threads"), int):
        context = replace(context, threads=tensor_device.set_up(context.device, recorded["threads"]))
    here = hardware(context)
    fields = differing_fields({name: recorded.get(name) for name in here}, here, found_in="here")
    if fields and not inexact:
        raise MismatchError(
            f"the cache was computed with another {'; '.join(fields)}; its {found.bad} bad shards would not come out the same "
            "bit for bit: repair where it was made, fetch it again with `dvc pull --force`, or allow it with "
            "`pipeline cache repair --inexact`",
            fields,
        )
    return config, context


def _compare(context: Context, before: str | None, report: str | None, *, inexact: bool) -> None:
    """Say whether the cache is what it was. Raises `CorruptError` where it is not and nobody allowed that."""
    artefacts = context.artefacts
    after = CacheReader(artefacts.cache).root_digest
    if before == after and report is not None:
        write_text(artefacts.cache_run, report)  # how long it took the first time: a metric of the cache, not of this
    if before is None:
        verdict = "nothing was left to compare it with"
    else:
        verdict = "the same as before" if before == after else f"another than before, {before}"
    context.progress.summary("repaired cache", {"root digest": after, "which is": verdict})
    if before not in (after, None) and not inexact:
        raise CorruptError(
            f"{artefacts.cache} is whole now, but its root digest was {before} and is {after}: "
            "its shards were wrong when they were written, or this machine computes otherwise; "
            "student runs that began with the old one start anew with `pipeline train-student`"
        )


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
