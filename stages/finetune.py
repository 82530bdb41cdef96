"""Stage `finetune`: a model with a new head on downstream tasks, once per seed, and its official scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers

from stages.config import Config
from stages.config.task_cache import finetuning
from stages.context import Context
from stages.errors import InputError
from stages.finetuning.job import Job
from stages.finetuning.learned import Learned
from stages.finetuning.outputs import outputs_of
from stages.finetuning.results import (
    chosen_by,
    finished,
    kept_seeds,
    other_results,
    remove_others,
    result_file,
    scores_like,
    write_model,
)
from stages.finetuning.scoring import Examination
from stages.finetuning.subject import Subject
from stages.finetuning.summary import publish_summary
from stages.finetuning.trainer import fine_tune
from stages.models import DIGEST_SHOWN, count_parameters
from stages.outputs import whole_folder, write_json
from stages.provenance import package_versions
from stages.tasks import TASKS
from stages.tasks.data import TaskData, examples_digest, read_evaluation, read_task
from stages.tasks.task import Encoded, Task
from stages.tasks.zero_shot import OtherTasks, read_zero_shot
from stages.training.checkpoints import Checkpoints
from storage.files import discard
from storage.identity import canonical_json
from storage.locking import lock

_EAGER_TOKENS = 128
"""On a CPU, attention on inputs of up to so many tokens is faster without a fused kernel."""


def run(
    config: Config,
    context: Context,
    *,
    tasks: Sequence[str] = (),
    model: str = "student",
    name: str | None = None,
    replace_others: bool = False,
    distil: bool = False,
) -> None:
    """Write `runs/finetune/<model>/<task>/<seed>.json`, and `summary.json`, `summary.md` and `summary.png` of all models there.

    `tasks` are names in `finetune.tasks`, empty: all. `model`: `student`, `teacher`, or a model folder, relative to the project;
    `name` is what its results are called. What has a result with the same parameters, weights and data is not done again; results
    with others are refused, or removed where `replace_others`. `distil`: learn from the fine-tuned teacher's answers in
    `cache/tasks/<task>/current` (`cache-teacher` of the task); neither that teacher nor the training examples are needed, and the
    results are called `<name>-distilled`.
    Checkpoints lie in `checkpoints/finetune-<fingerprint>`.

    Raises `ConfigError` for parameters that name no such task, `InputError` for a model or data that cannot be used,
    `storage.LockedError` where another process does the same seed, `Interrupted` after a checkpoint when asked to stop.
    """
    settings = finetuning(config)
    names = list(dict.fromkeys(tasks)) or list(settings.tasks)
    heads = {TASKS[settings.kind_of(task)].head for task in names}
    subject = Subject.of(model, name, heads, context, distil=distil)
    jobs = [Job.of(config, context, task, subject, distil=distil) for task in names]
    for job in jobs:  # what would be refused is refused before the first of them takes an hour
        job.check(context)
        if not replace_others:  # otherwise they stay until those that replace them are begun
            _clear(job, job.parameters, replace_others, context)
    write_model(subject.results, {"path": subject.path, "weights": subject.weights, "kind": subject.base.kind})
    for job in jobs:
        _do(job, replace_others, context)
    publish_summary(context)


def _do(job: Job, replace_others: bool, context: Context) -> None:
    """All seeds of a task."""
    data = _data(job, context)
    others = read_zero_shot(job.settings, job.name, context.artefacts.project, context.progress.message)
    beside = {f"zero_shot {name}": examples_digest(sets) for name, (_, sets) in others.items()}
    learned = {} if job.cached is None else {"train": job.cached.examples}
    identity = {**job.parameters, "data": {**data.digests, **learned, **beside}}
    _clear(job, identity, replace_others, context)
    identities = {seed: {**identity, "seed": seed} for seed in job.settings.seeds}
    missing = [
        seed
        for seed, of_seed in identities.items()
        if finished(result_file(job.subject.results, job.name, seed), of_seed) is None
    ]
    if len(missing) < len(identities):
        context.progress.message(f"{job.name}: {len(identities) - len(missing)} of {len(identities)} seeds are done")
    if not missing:
        return
    encoded = _encoded(job, data, others, context)
    for seed in missing:
        _do_seed(job, seed, identities[seed], data, encoded, context)


def _clear(job: Job, identity: dict[str, Any], replace_others: bool, context: Context) -> None:
    """Refuse, or remove, results that are not of this identity: one table must not mix them. Raises `InputError`."""
    others = other_results(job.subject.results, job.name, identity)
    if not others:
        return
    file, differences = next(iter(others.items()))
    if not replace_others:
        raise InputError(
            f"{context.artefacts.shown(file)} is of other parameters, weights or data: {'; '.join(differences)}; give these results "
            "another name with --name, or replace those with --replace"
        )
    for file in others:
        discard(file)
    context.progress.message(f"{job.name}: removed {len(others)} results of other parameters, weights or data")


def _data(job: Job, context: Context) -> TaskData[Any]:
    """The task's examples; of one that is learned from a cache, those that it is scored on, and chosen by."""
    where = (job.settings, job.name, job.task, context.artefacts.project, context.progress.message)
    if job.cached is None:
        return read_task(*where)
    settings = job.settings.settings_of(job.name)
    if settings.held_out is None and settings.validation is None:
        return TaskData(train=(), evaluation=read_evaluation(*where))
    data = read_task(*where)
    found, expected = data.digests["train"], job.cached.examples
    if found != expected:  # what is scored here may be among what is learned there
        raise InputError(
            f"the cache of {job.name} is of other training examples ({expected[:DIGEST_SHOWN]}) than those that are left here "
            f"({found[:DIGEST_SHOWN]}) when {job.name}'s held_out and validation are taken from them: the student might learn what it "
            f"is scored on; put the same files here, or run: pipeline cache-teacher --task {job.name}"
        )
    return replace(data, train=())


def _encoded(job: Job, data: TaskData[Any], others: OtherTasks, context: Context) -> tuple[Learned, Examination]:
    """The inputs of the training, and those that the model is scored on."""
    scored = (data.evaluation, data.validation, *(sets for _, sets in others.values()))
    total = len(data.train) + sum(len(examples) for sets in scored for examples in sets.values())
    context.progress.begin(f"tokenize {job.name}", total, "examples")

    def encode(task: Task[Any], examples: Sequence[Any], *, learning: bool = False) -> Encoded:
        return task.encode(
            examples, job.subject.base.tokenizer, job.training, learning=learning, done=_counted(context)
        )

    examination = Examination.of(job.task, data, others, encode)
    if job.cached is not None:
        return _from_cache(job, context), examination
    return Learned.of(encode(job.task, data.train, learning=True).rows), examination


def _from_cache(job: Job, context: Context) -> Learned:
    assert job.cached is not None
    context.progress.begin(f"read the cache of {job.name}", job.cached.shards, "shards")

    def read() -> None:
        context.progress.advance(1)
        context.stop_if_asked("the results of finished seeds are kept")

    return Learned.of_cache(job.cached, job.name, job.task, job.subject.base, read)


def _counted(context: Context) -> Callable[[int], None]:
    def done(examples: int) -> None:
        context.progress.advance(examples)
        context.stop_if_asked("the results of finished seeds are kept")

    return done


def _do_seed(
    job: Job,
    seed: int,
    identity: dict[str, Any],
    data: TaskData[Any],
    encoded: tuple[Learned, Examination],
    context: Context,
) -> None:
    """Fine-tune, score and record one seed."""
    artefacts, subject = context.artefacts, job.subject
    # What may change the last bits makes another training, but not another result.
    run_ = {
        "identity": identity,
        "precision": job.precision,
        "device": torch.device(context.device).type,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    fingerprint = hashlib.sha256(canonical_json(run_)).hexdigest()
    checkpoints = Checkpoints(
        folder=artefacts.checkpoints / f"finetune-{fingerprint[:16]}",
        run=fingerprint,
        cache=identity["data"]["train"],
        kept=1,
    )
    file = result_file(subject.results, job.name, seed)
    artefacts.checkpoints.mkdir(parents=True, exist_ok=True)
    with lock(artefacts.checkpoints, checkpoints.folder.name, "this fine-tuning"):
        if finished(file, identity) is not None:  # by another process, in the meantime
            return
        train, examination = encoded
        short = context.device == "cpu" and job.training.max_tokens <= _EAGER_TOKENS
        model = subject.base.with_head(job.task.head, job.task.labels, seed=seed, attention="eager" if short else None)
        trained = fine_tune(
            model,
            train.rows,
            train.lengths,
            name=job.name,
            pad_id=subject.base.pad_id,
            training=job.training,
            seed=seed,
            precision=job.precision,
            settings=job.settings,
            checkpoints=checkpoints,
            context=context,
            loss=train.loss,
        )
        context.progress.begin(f"score {job.name}, seed {seed}", len(examination), "inputs")
        found = examination.scored(
            lambda some: outputs_of(
                model,
                some,
                job.task.head,
                pad_id=subject.base.pad_id,
                batch_size=job.settings.evaluation_batch_size,
                precision=job.precision,
                context=context,
            )
        )
        scores = {**scores_like(subject.results, job.name, identity), seed: chosen_by(found)}
        kept = kept_seeds(job.settings.keep, scores)
        models = artefacts.finetuned(subject.name, job.name)
        if seed in kept:
            with whole_folder(models / str(seed)) as draft:
                model.save_pretrained(draft)
                subject.base.save_tokenizer(draft)
        write_json(
            file,
            {
                "model": subject.name,
                "task": job.name,
                "kind": job.task.kind,
                "seed": seed,
                **found,
                "examples": {**(train.counts or {"train": len(data.train)}), **examination.examples},
                "inputs": len(train.rows),
                "steps": trained.steps,
                "loss": trained.loss,
                "seconds": trained.seconds,
                "parameters": count_parameters(model),
                "weights": subject.weights[:DIGEST_SHOWN],
                "run_fingerprint": fingerprint,
                "commit": context.commit,
                "packages": package_versions(),
                **{name: run_[name] for name in ("precision", "device", "identity")},
            },
        )
        remove_others(models, kept)
        discard(checkpoints.folder)
        context.progress.message(f"{job.name}, seed {seed}: {_shown(found['figures'])}")


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f}" for name, value in figures.items())
