"""Stage `train-student`: train a student from the cache. The teacher and the corpus need not be there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PrinterCallback

from stages.batches import decoder_for, slots_for
from stages.cache_location import cache_name, open_cache
from stages.config import Config, to_plain
from stages.config.base import require
from stages.context import Context
from stages.errors import InputError, Interrupted
from stages.heads import Head
from stages.model_config import ModelShape
from stages.models import load_language_model, load_model_config
from stages.provenance import provenance_of, read_resolved, record_provenance
from stages.trained_student import publish
from stages.training.arguments import training_arguments
from stages.training.caches import batches_of, check_cache, further_caches, left_out_of_cosine, memory_bytes
from stages.training.checkpoints import Checkpoint, Checkpoints, checkpoint_of, load_weights, log_of
from stages.training.distiller import Distiller, wanted_by
from stages.training.fitting import check_inside
from stages.training.log import LOSSES, data_wait_of, refuse_not_finite, seconds_of, steps_of
from stages.training.processes import Processes, joined
from stages.training.progress import ReportProgress
from stages.training.run import TrainingRun, batch_plan, plan_run
from stages.training.sharded import ShardedTrainer
from stages.training.teachers import Teacher, root_digests
from stages.training.trackers import open_trackers, require_trackers
from stages.training.trainer import DistillationTrainer
from stages.training.validation import Log, Validation, is_due, judge, kept_step
from storage import CacheReader, differing_fields
from storage.locking import lock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(config: Config, context: Context) -> None:
    """Write `models/student` with its model card, and `train.json`, `train.csv`, `validation.csv` and `provenance.json` in `runs`.

    Checkpoints lie in `checkpoints/<run fingerprint>`.

    Raises `storage.MismatchError` where the cache was made with other parameters, `InputError` where the student's
    initial weights are missing or of another shape, `Interrupted` after a checkpoint when asked to stop.
    """
    require(
        not config.machine.fsdp or context.world_size > 1,
        "machine.fsdp",
        True,
        "false in one process (torchrun starts several)",
    )
    require(
        not config.machine.fsdp or config.train.validation.steps is None,
        "train.validation.steps",
        config.train.validation.steps,
        "null, as machine.fsdp is true: a student that is spread over processes is not validated on the way",
    )
    require(
        not (config.machine.fsdp and (config.train.compile or config.train.precision == "float16")),
        "machine.fsdp",
        True,
        "false with train.compile or train.precision: float16, which were never run together",
    )
    with joined(context) as processes:
        reader = _fitting_cache(config, context)
        student = _initial_student(config, context, reader)
        run_ = plan_run(config, context, reader, further_caches(config, context, reader))
        context.artefacts.checkpoints.mkdir(parents=True, exist_ok=True)
        # One launch trains a run: a `dvc repro` that was killed leaves its stage running.
        alone = lock(context.artefacts.checkpoints, run_.fingerprint[:16], "this training run")
        with alone if context.rank == 0 else nullcontext():
            _train_and_publish(config, context, reader, student, run_, processes)


def _train_and_publish(
    config: Config,
    context: Context,
    reader: CacheReader,
    student: PreTrainedModel,
    run_: TrainingRun,
    processes: Processes,
) -> None:
    folder, rules = context.artefacts.checkpoints / run_.fingerprint[:16], config.train.validation
    checkpoints = Checkpoints(
        folder=folder,
        run=run_.fingerprint,
        cache=reader.root_digest,
        further_caches=root_digests(run_.further),
        fsdp=config.machine.fsdp,
    )
    checkpoint = processes.of_first(lambda: checkpoints.newest(context.progress.message))
    first_step, history = (0, []) if checkpoint is None else (checkpoint.step, log_of(checkpoint.folder))
    if checkpoint is not None:
        context.progress.message(f"resuming from {checkpoint.folder.name} of run {run_.fingerprint[:12]}")
    context.progress.begin(f"train {config.train.student}", run_.steps, "steps", done=first_step)
    trains = not _is_over(config, run_, history, first_step)
    further = {cache.name: cache.reader for cache in run_.further}
    provenance = provenance_of(config, context, reader, run_.fingerprint, further)
    if context.rank == 0:
        provenance = record_provenance(folder, provenance, trains=trains)
    if trains:
        history = _train(config, context, reader, student, run_, checkpoints, checkpoint, processes)
        if config.machine.fsdp:  # no process holds the whole of it
            student = _initial_student(config, context, reader)
            load_weights(student, checkpoint_of(folder, steps_of(history)))
    elif checkpoint is not None:  # killed between the last checkpoint and the publication
        load_weights(student, checkpoint.folder)
    if context.rank == 0:
        steps = steps_of(history)
        kept = kept_step(rules, history) or steps
        if kept != steps:
            load_weights(student, checkpoint_of(folder, kept))
        publish(
            student,
            config,
            context,
            reader,
            provenance=provenance,
            history=history,
            figures={
                "steps": steps,
                "planned_steps": run_.steps,
                "kept_step": kept,
                "epochs": round(steps / run_.plan.steps_per_epoch, 2),
                "precision": run_.precision,
                "seconds": round(seconds_of(history), 1),
                "data_wait": round(data_wait_of(history), 4),
                **({"further_cache_root_digests": root_digests(run_.further)} if run_.further else {}),
            },
        )
    processes.wait()


def _is_over(config: Config, run_: TrainingRun, history: Log, step: int) -> bool:
    """Whether nothing of a run is left to be done after `step` steps."""
    rules = config.train.validation
    if is_due(rules, history, step, run_.steps):
        return False
    return step == run_.steps or judge(rules, history).is_over


def check(config: Config, context: Context, *, initial_weights: bool = True) -> None:
    """Refuse now what `run` would refuse before its first step; `initial_weights` says whether they have to be there.

    Raises as `run` does.
    """
    reader = _fitting_cache(config, context)
    further_caches(config, context, reader)
    if initial_weights:
        _initial_folder(config, context, reader)


def _fitting_cache(config: Config, context: Context) -> CacheReader:
    """The cache, which these parameters and the files at hand made and which has what the losses read."""
    require_trackers(config.machine.report_to)
    reader = open_cache(config, context, "train", "validation")
    check_cache(config, context, reader)
    check_inside(config, reader.description)
    if config.train.ensemble is None:
        slots_for(reader, batch_plan(config, reader), wanted_by(config.train), memory_bytes(config))
    return reader


def _initial_student(config: Config, context: Context, reader: CacheReader) -> PreTrainedModel:
    folder = _initial_folder(config, context, reader)
    # On short sequences a CPU takes a quarter less time for a training step with eager attention; this is not saved.
    short = context.device == "cpu" and config.tokenize.sequence_tokens <= 128
    return load_language_model(folder, objective=reader.description.objective, attention="eager" if short else None)


def _initial_folder(config: Config, context: Context, reader: CacheReader) -> Path:
    """Where the initial weights are, made with the student's parameters for this cache's teacher."""
    name = config.train.student
    folder = context.artefacts.student_init(name)
    command = f"pipeline init-student {name}"
    place = (
        " where the teacher is (models/teacher), then bring models/student-init here (by `dvc pull`, or any copy)"
        if config.student.initialise == "teacher"
        else ""
    )
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: the initial weights of student {name!r}; run: {command}{place}")
    differences = differing_fields(
        {"students": {name: to_plain(config.student)}},
        read_resolved(folder, f"{command}{place}"),
        found_in="in that folder",
    )
    if differences:
        raise InputError(f"{folder} was made with other parameters: {'; '.join(differences)}; run: {command}{place}")
    shape, description = ModelShape.of(load_model_config(folder)), reader.description
    width = config.student.hidden_size or description.hidden_size
    if (shape.vocabulary_size, shape.hidden_size) != (description.vocabulary_size, width):
        raise InputError(
            f"{folder} was made for another teacher: its vocabulary is {shape.vocabulary_size} and its hidden size {shape.hidden_size}; "
            f"expected {description.vocabulary_size} and {width}, as {cache_name(context.artefacts)} has them; run: {command}{place}"
        )
    return folder


def _train(
    config: Config,
    context: Context,
    reader: CacheReader,
    student: PreTrainedModel,
    run_: TrainingRun,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    processes: Processes,
) -> list[dict[str, float]]:
    """Drive the Trainer to the last step; returns its log. Raises `Interrupted` after a checkpoint when asked to stop."""
    train = config.train
    if train.weights.kd > 0 and train.tail == "renormalise":
        context.progress.message(
            "train.tail is renormalise: the student is pulled to the top-k ids alone, far from the teacher; for comparison only"
        )
    left_out = left_out_of_cosine(config, reader, run_.further)
    if left_out is not None:
        context.progress.message(left_out)
    teacher_head = Head.load(reader.folder) if train.reads_teacher_logits else None
    distiller = Distiller(
        student,
        train,
        decoder_for(reader.description, "train"),
        teacher_head,
        teacher_width=reader.description.hidden_size,
        further=[Teacher.of(cache, train) for cache in run_.further],
    )
    first_step = 0 if checkpoint is None else checkpoint.step
    batches = batches_of(config, context, reader, run_, first_step)
    validation = Validation(train, reader, context, processes)
    arguments = training_arguments(config, context, run_, checkpoints.folder)
    if checkpoint is not None:  # a validation that was interrupted is made up for
        arguments.eval_on_start = is_due(train.validation, log_of(checkpoint.folder), checkpoint.step, run_.steps)
    trainer = (ShardedTrainer if config.machine.fsdp else DistillationTrainer)(
        distiller,
        arguments,
        batches,
        validation,
        checkpoints=checkpoints,
        resumed=checkpoint,
        processes=processes,
        callbacks=[
            ReportProgress(
                context,
                lambda loss, step: refuse_not_finite(loss, step, processes),
                should_stop=lambda: processes.any(context.should_stop()),  # so all of them save the same step
                shown=LOSSES,
            ),
            validation,
            *open_trackers(config, context, run_, first_step),
        ],
    )
    if processes.size > 1:
        torch.set_num_threads(context.threads)  # accelerate has set what it thinks is this one's share of the cores
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint.folder))
    history: list[dict[str, float]] = trainer.state.log_history
    if not _is_over(config, run_, history, trainer.state.global_step):
        processes.wait()
        raise processes.same(
            Interrupted(
                f"stopped as asked at step {trainer.state.global_step} of {run_.steps}; the checkpoint is in {checkpoints.folder}; "
                "run the same command again to resume"
            )
        )
    return history
