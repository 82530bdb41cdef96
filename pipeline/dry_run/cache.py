"""What there is of a cache, and what `pipeline cache-teacher` would compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.dry_run.files import MISSING, SAME, inputs, or_made_by, wanted_of, wanted_of_teacher
from stages.config import Config, cache_spec
from stages.config.task_cache import finetuning, task_spec
from stages.context import Artefacts, Context, Figure
from stages.errors import StageError
from stages.sequences import TokenStore
from storage import SPLITS, CacheDescription, differing_fields
from storage.errors import CacheError
from storage.manifest import CACHE_FILE, RootManifest, manifest_file
from storage.reader import read_identity

if TYPE_CHECKING:
    from storage import Part


def cache_teacher(config: Config, context: Context, *, verify: bool = False, part: Part | None = None) -> None:
    """How much of the cache that `pipeline cache-teacher` would make is there, and what is missing of it."""
    artefacts = context.artefacts
    if config.cache.targets != "language_model" and artefacts.further_teacher is None and artefacts.task is None:
        for name in finetuning(config).tasks:
            cache_teacher(config, context.of_task(name), verify=verify, part=part)
        return
    if artefacts.task is None:
        rows = inputs(
            context, {artefacts.tokens: wanted_of(config, "tokenize"), artefacts.teacher: wanted_of_teacher(config)}
        )
    else:
        rows = inputs(context, {artefacts.teacher: None})
    if artefacts.root is None:
        rows.update(_cache_rows(config, artefacts))
    else:
        rows["writes to the root"] = "what is there is not looked at here: `pipeline cache-teacher` takes what is whole"
    if verify:
        rows["--verify"] = "reads back all that is at the root first"
    if part is not None:
        rows["--shards"] = f"of these, every {part.parts}-th from the {part.number}-th on"
    context.progress.summary(f"dry run of {artefacts.cache_command.removeprefix('pipeline ')}", rows)


def cache_input(config: Config, artefacts: Artefacts) -> dict[str, Figure]:
    """The `cache_state` of a cache that is read, and what makes it where it is missing."""
    found = or_made_by(cache_state(config, artefacts), artefacts.cache_command)
    return {f"reads {artefacts.shown(artefacts.cache)}": found}


def cache_state(config: Config, artefacts: Artefacts) -> str:
    """Whether the cache that is meant is there, finished, and of these parameters."""
    found = _finished(artefacts.cache)
    if isinstance(found, str):
        return found
    differences = differing_fields(_spec(config, artefacts), found[0].spec)
    return f"there, of other parameters: {'; '.join(differences)}" if differences else SAME


def _spec(config: Config, artefacts: Artefacts) -> dict[str, Any]:
    return cache_spec(config) if artefacts.task is None else task_spec(config, artefacts.task)


def _finished(folder: Path) -> tuple[CacheDescription, RootManifest] | str:
    """The cache in a folder, or what is to be said instead."""
    if not folder.is_dir():
        return MISSING
    try:
        return read_identity(folder)
    except (CacheError, OSError) as error:
        return f"there, but {error}"


def _cache_rows(config: Config, artefacts: Artefacts) -> dict[str, Figure]:
    """The shards of the cache of these parameters that are there: finished, else in the work folder; sizes are not verified."""
    rows: dict[str, Figure] = {f"writes {artefacts.shown(artefacts.cache)}": cache_state(config, artefacts)}
    found = _finished(artefacts.cache)
    if not isinstance(found, str) and _fits(config, artefacts, found[0]):
        missing = [shard for shard in found[0].shard_ids() if not (artefacts.cache / manifest_file(shard)).is_file()]
        return {**rows, **_shards(found[0], len(missing), "nothing; it is verified" if not missing else None)}
    for folder, description in _begun(artefacts):
        if _fits(config, artefacts, description):
            missing = [shard for shard in description.shard_ids() if not (folder / manifest_file(shard)).is_file()]
            rows[f"resumes {artefacts.shown(folder)}"] = f"cache {description.fingerprint[:12]}"
            return {**rows, **_shards(description, len(missing), None)}
    if artefacts.task is None:
        rows.update(_all_of_it(config, artefacts))
    return rows


def _fits(config: Config, artefacts: Artefacts, description: CacheDescription) -> bool:
    """Whether it is of these parameters and of the tokens that are here."""
    if differing_fields(_spec(config, artefacts), description.spec):
        return False
    try:
        return description.content.get("tokens") == TokenStore.open(artefacts.tokens).recorded_digest
    except StageError:
        return True  # nothing here says otherwise


def _begun(artefacts: Artefacts) -> Iterator[tuple[Path, CacheDescription]]:
    for file in sorted(artefacts.cache_work.glob(f"*/{CACHE_FILE}")):
        try:
            yield file.parent, CacheDescription.from_bytes(file.read_bytes())
        except (CacheError, OSError):  # damaged: it is begun anew
            continue


def _shards(description: CacheDescription, missing: int, then: str | None) -> dict[str, Figure]:
    total = len(description.shard_ids())
    tokens = sum(split.tokens * split.variants for split in description.splits.values())
    return {
        "shards there": f"{total - missing:,} of {total:,}",
        "shards missing": missing,
        "would compute": then or f"about {round(tokens * missing / max(1, total)):,} of {tokens:,} tokens",
    }


def _all_of_it(config: Config, artefacts: Artefacts) -> dict[str, Figure]:
    """Of a cache that is not begun: what its tokens say."""
    try:
        store = TokenStore.open(artefacts.tokens)
        total = 0
        for split in SPLITS:
            lengths = store.split(split).lengths[: getattr(config.cache.sequences, split)]
            total += int(lengths.sum()) * (config.masking.variants if split == "train" else 1)
    except StageError as error:
        return {"would compute": f"all, of which nothing can be said: {error}"}
    return {
        "shards there": f"0 of about {-(-total // config.cache.shard_tokens):,}",
        "would compute": f"all {total:,} tokens; `pipeline plan` says in what time and room",
    }
