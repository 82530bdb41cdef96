"""`--dry-run`: what is there, and what a stage would do. Reads descriptions and writes nothing.

What makes a file stale beyond the parameters (other content of an input) is DVC's to say: `dvc status`. Here nothing is read that
grows with the data, but for the student's initial weights, whose digest is part of a training's identity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import Config, cache_spec, to_plain
from stages.config.task_cache import finetuning, task_spec
from stages.context import Artefacts, Context, Figure
from stages.errors import ConfigError, StageError
from stages.provenance import RESOLVED, read_resolved
from stages.sequences import TokenStore
from storage import SPLITS, CacheDescription, differing_fields
from storage.errors import CacheError
from storage.manifest import CACHE_FILE, RootManifest, manifest_file
from storage.reader import read_identity

if TYPE_CHECKING:
    from storage import Part

MISSING = "missing"
SAME = "there, of these parameters"


def preview_of(command: str) -> Callable[..., None]:
    """What says it for the stage called `command`."""
    return _PREVIEWS[command]


def corpus(config: Config, context: Context) -> None:
    """What `pipeline corpus` would read and write."""
    rows: dict[str, Figure] = {"reads": f"corpus.source: {config.corpus.source}"}
    if config.corpus.files is not None and config.corpus.source == "files":
        from stages.documents.files import listed_files

        try:
            files = listed_files(config.corpus.files, context.artefacts.project.absolute())
            size = sum(file.stat().st_size for file in files.values())
            rows["reads"] = f"{len(files):,} files, {size / 1e6:,.1f} megabytes"
        except StageError as error:
            rows["reads"] = f"{MISSING}: {error}"
    _show(context, "corpus", rows, {context.artefacts.documents: _wanted(config, "corpus")})


def tokenize(config: Config, context: Context) -> None:
    """What `pipeline tokenize` would read and write."""
    documents = context.artefacts.documents
    rows = _inputs(context, {documents: _wanted(config, "corpus")})
    if documents.is_dir():
        size = sum(file.stat().st_size for file in documents.glob("*.parquet"))
        rows["megabytes of documents, compressed"] = round(size / 1e6, 1)
    _show(context, "tokenize", rows, {context.artefacts.tokens: _wanted(config, "tokenize")})


def teacher(config: Config, context: Context, name: str | None = None) -> None:
    """What `pipeline teacher [NAME]` would read and write."""
    if name is not None:
        config, context = config.of_teacher(name), context.of_teacher(name)
    rows, training = _inputs(context, {context.artefacts.tokens: _wanted(config, "tokenize")}), config.teacher.training
    rows["trains"] = (
        "nothing: the model is taken as it is"
        if training is None
        else f"{training.steps:,} steps of {training.batch_size} sequences ({training.float32_steps:,} in float32)"
    )
    _show(context, "teacher", rows, {context.artefacts.teacher: _wanted_of_teacher(config)})


def cache_teacher(config: Config, context: Context, *, verify: bool = False, part: Part | None = None) -> None:
    """How much of the cache that `pipeline cache-teacher` would make is there, and what is missing of it."""
    artefacts = context.artefacts
    if config.cache.targets != "language_model" and artefacts.further_teacher is None and artefacts.task is None:
        for name in finetuning(config).tasks:
            cache_teacher(config, context.of_task(name), verify=verify, part=part)
        return
    if artefacts.task is None:
        rows = _inputs(
            context, {artefacts.tokens: _wanted(config, "tokenize"), artefacts.teacher: _wanted_of_teacher(config)}
        )
    else:
        rows = _inputs(context, {artefacts.teacher: None})
    if artefacts.root is None:
        rows.update(_cache_rows(config, artefacts))
    else:
        rows["writes to the root"] = "what is there is not looked at here: `pipeline cache-teacher` takes what is whole"
    if verify:
        rows["--verify"] = "reads back all that is at the root first"
    if part is not None:
        rows["--shards"] = f"of these, every {part.parts}-th from the {part.number}-th on"
    context.progress.summary(f"dry run of {artefacts.cache_command.removeprefix('pipeline ')}", rows)


def init_student(config: Config, context: Context, names: tuple[str, ...]) -> None:
    """What `pipeline init-student` would read and write, for each student."""
    for name in names or config.students:
        if name not in config.students:
            from stages.config import suggest

            raise ConfigError(f"student {name!r} is not in students; {suggest(name, config.students)}")
        rows = _inputs(context, {context.artefacts.teacher: _wanted_of_teacher(config)})
        wanted = {"students": {name: to_plain(config.students[name])}}
        _show(context, f"init-student {name}", rows, {context.artefacts.student_init(name): wanted})


def train_student(config: Config, context: Context) -> None:
    """How far the very training that `pipeline train-student` would do has come."""
    artefacts, name = context.artefacts, config.train.student
    of_student = {"students": {name: to_plain(config.student)}}
    rows = _inputs(context, {artefacts.student_init(name): of_student})
    if artefacts.root is not None:
        rows["reads"] = "the cache at the root, which is not looked at here; so how far a training is remains open"
    else:
        rows[f"reads {artefacts.shown(artefacts.cache)}"] = _cache_state(config, artefacts)
        rows.update(_training_rows(config, context))
    _show(context, "train-student", rows, {artefacts.student: {**_wanted(config, "train"), **of_student}})


def evaluate(config: Config, context: Context, *, speed: bool, **_arguments: Any) -> None:
    """What `pipeline evaluate` would read and write."""
    artefacts = context.artefacts
    rows = _inputs(context, {artefacts.student: None})
    if speed:
        rows.update(_inputs(context, {artefacts.teacher: None}))
        _show(context, "evaluate --speed", rows, {artefacts.speed_on_text: None})
        return
    if artefacts.root is None:
        rows[f"reads {artefacts.shown(artefacts.cache)}"] = _cache_state(config, artefacts)
    rows["split"] = config.evaluate.split
    evaluation, training = (_recorded(artefacts.runs / f"{file}.json") for file in ("evaluation", "train"))
    _show(context, "evaluate", rows, {artefacts.runs / "evaluation.json": None})
    if evaluation and evaluation.get("weights") != training.get("weights"):
        context.progress.message("runs/evaluation.json is of another student than runs/train.json")


def report(config: Config, context: Context) -> None:  # noqa: ARG001  of every preview
    """What `pipeline report` would read and write."""
    artefacts = context.artefacts
    read = (
        artefacts.teacher_figures,
        artefacts.cache_run,
        artefacts.runs / "train.json",
        artefacts.runs / "evaluation.json",
    )
    _show(context, "report", _inputs(context, dict.fromkeys(read)), {artefacts.report / "index.html": None})


_PREVIEWS: dict[str, Callable[..., None]] = {
    "corpus": corpus,
    "tokenize": tokenize,
    "teacher": teacher,
    "cache-teacher": cache_teacher,
    "init-student": init_student,
    "train-student": train_student,
    "evaluate": evaluate,
    "report": report,
}


def _wanted(config: Config, *sections: str) -> dict[str, Any]:
    return {section: to_plain(getattr(config, section)) for section in sections}


def _wanted_of_teacher(config: Config) -> dict[str, Any]:
    return _wanted(config, "teacher", *(() if config.teacher.training is None else ("masking",)))


def _show(
    context: Context, stage: str, rows: dict[str, Figure], outputs: Mapping[Path, Mapping[str, Any] | None]
) -> None:
    shown = context.artefacts.shown
    rows.update({f"writes {shown(path)}": state(path, wanted) for path, wanted in outputs.items()})
    context.progress.summary(f"dry run of {stage}", rows)


def _inputs(context: Context, paths: Mapping[Path, Mapping[str, Any] | None]) -> dict[str, Figure]:
    return {f"reads {context.artefacts.shown(path)}": state(path, wanted) for path, wanted in paths.items()}


def state(path: Path, wanted: Mapping[str, Any] | None) -> str:
    """Whether a file or folder is there, and, where it records its parameters, whether they are those `wanted`."""
    if not path.exists():
        return MISSING
    if wanted is None or not (path / RESOLVED).is_file():
        return "there"
    try:
        resolved = read_resolved(path, "the command that writes it")
    except StageError as error:
        return f"there, but {error}"
    differences = differing_fields(wanted, {name: resolved.get(name) for name in wanted}, found_in="there")
    return f"there, of other parameters: {'; '.join(differences)}" if differences else SAME


def _recorded(file: Path) -> dict[str, Any]:
    """What a file of figures says; nothing where it is not there or cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _cache_state(config: Config, artefacts: Artefacts) -> str:
    found = _finished(artefacts.cache)
    if isinstance(found, str):
        return found
    differences = differing_fields(_spec(config, artefacts), found[0].spec)
    return f"there, of other parameters: {'; '.join(differences)}" if differences else SAME


def _cache_rows(config: Config, artefacts: Artefacts) -> dict[str, Figure]:
    """The shards of the cache of these parameters that are there: finished, else in the work folder; sizes are not verified."""
    rows: dict[str, Figure] = {f"writes {artefacts.shown(artefacts.cache)}": _cache_state(config, artefacts)}
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


def _training_rows(config: Config, context: Context) -> dict[str, Figure]:
    """Steps and checkpoints of exactly this training; its identity needs the cache and the initial weights."""
    from stages.device import resolve_device
    from stages.training.caches import further_caches
    from stages.training.checkpoints import checkpoint_step
    from stages.training.run import plan_run
    from storage import CacheReader

    artefacts = context.artefacts
    if not artefacts.cache.is_dir() or not artefacts.student_init(config.train.student).is_dir():
        steps = config.train.steps
        return {"steps there": f"0 of {steps:,}"} if steps else {"epochs": config.train.epochs or 0}
    try:
        context = replace(context, device=resolve_device(config.machine.device, 0, 1))
        reader = CacheReader(artefacts.cache)
        run = plan_run(config, context, reader, further_caches(config, context, reader))
    except ConfigError:
        raise
    except (StageError, CacheError) as error:
        return {"cannot begin": str(error)}
    folder = artefacts.checkpoints / run.fingerprint[:16]
    there = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    newest = max(map(checkpoint_step, there), default=0)
    published = _recorded(artefacts.runs / "provenance.json").get("run_fingerprint") == run.fingerprint
    return {
        "run": run.fingerprint[:12],
        "steps there": f"{newest:,} of {run.steps:,}",
        "steps missing": run.steps - newest,
        "newest checkpoint": artefacts.shown(folder / f"checkpoint-{newest}") if newest else "none",
        "sequences a step": config.train.batch_size,
        "precision": run.precision,
        "models/student is of this run": published,
    }
