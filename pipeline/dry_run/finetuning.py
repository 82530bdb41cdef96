"""Which seeds of which tasks `pipeline finetune` would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as replaced
from typing import TYPE_CHECKING

from pipeline.dry_run.cache import cache_input
from pipeline.dry_run.files import CANNOT_BEGIN, inputs, state
from pipeline.progress import counted
from stages.config import Config, FinetuneConfig
from stages.config.task_cache import finetuning
from stages.context import Context, Figure
from stages.errors import ConfigError, InputError, StageError
from stages.tasks import TASKS
from storage.errors import CacheError

if TYPE_CHECKING:
    from stages.finetuning.job import Job
    from stages.finetuning.subject import Subject


def finetune(
    config: Config,
    context: Context,
    *,
    tasks: Sequence[str],
    model: str,
    name: str | None,
    replace: bool,
    distil: bool,
) -> None:
    """What `pipeline finetune` would read, and how many seeds are done, as far as parameters and weights tell: no data is read."""
    from stages.device import resolve_device

    settings = finetuning(config)
    names = list(dict.fromkeys(tasks)) or list(settings.tasks)
    context = replaced(context, device=resolve_device(config.machine.device, 0, 1))
    subject = _subject(settings, names, model, name, context, distil=distil)
    for task in names:
        rows = _inputs(config, context, settings, task, model, distil=distil)
        if distil and context.artefacts.root is not None:
            rows["reads"] = "the cache at the root, which is not looked at here; so what is done of it remains open"
        elif isinstance(subject, str):
            rows[CANNOT_BEGIN] = subject
        else:
            rows.update(_job_rows(config, context, task, subject, replace=replace, distil=distil))
        context.progress.summary(f"dry run of finetune {task}", rows)


def _subject(
    settings: FinetuneConfig, names: Sequence[str], model: str, name: str | None, context: Context, *, distil: bool
) -> Subject | str:
    """The model, or why there is none."""
    from stages.finetuning.subject import Subject

    heads = {TASKS[settings.kind_of(task)].head for task in names}
    try:
        return Subject.of(model, name, heads, context, distil=distil)
    except InputError as error:
        return str(error)


def _inputs(
    config: Config, context: Context, settings: FinetuneConfig, task: str, model: str, *, distil: bool
) -> dict[str, Figure]:
    artefacts = context.artefacts
    folder = {"student": artefacts.student, "teacher": artefacts.teacher}.get(model)
    rows: dict[str, Figure] = (
        {f"reads {model}": state(artefacts.project / model, None)}
        if folder is None
        else inputs(context, {folder: None})
    )
    if settings.source == "files":
        data = settings.folder_of(task)
        rows[f"reads {data}"] = state(artefacts.project / data, None)
    else:
        dataset = getattr(settings.hub, TASKS[settings.kind_of(task)].layout.hub)
        rows[f"reads {dataset.name}"] = f"of the hub, at {dataset.revision}"
    if distil and artefacts.root is None:
        rows.update(cache_input(config, artefacts.of_task(task)))
    return rows


def _job_rows(
    config: Config, context: Context, task: str, subject: Subject, *, replace: bool, distil: bool
) -> dict[str, Figure]:
    from stages.finetuning.job import Job

    try:
        job = Job.of(config, context, task, subject, distil=distil)
        job.check(context)
        return _result_rows(job, context, replace=replace)
    except ConfigError:
        raise
    except (StageError, CacheError) as error:
        return {CANNOT_BEGIN: str(error)}


def _result_rows(job: Job, context: Context, *, replace: bool) -> dict[str, Figure]:
    """The results that are there, and what is missing of them."""
    from stages.finetuning.results import other_results, result_file

    folder, seeds = job.subject.results, job.settings.seeds
    others = other_results(folder, job.name, job.parameters)
    files = [result_file(folder, job.name, seed) for seed in seeds]
    missing = sum(not file.is_file() or file in others for file in files)
    rows: dict[str, Figure] = {
        f"writes {context.artefacts.shown(folder / job.name)}": state(folder / job.name, None),
        "seeds there": f"{len(seeds) - missing} of {len(seeds)}",
        "seeds missing": missing,
    }
    if others:
        differences = "; ".join(next(iter(others.values())))
        what = "would be removed" if replace else "refused: give another --name, or --replace them"
        rows["results of other parameters or weights"] = f"{len(others)}, {what} ({differences})"
    length = job.training.max_steps
    each = counted(job.training.epochs, "epochs") if length is None else f"at most {counted(length, 'steps')}"
    rows["would train"] = (
        f"{counted(missing, 'seeds')}, {each} each, in batches of {job.training.batch_size}" if missing else "nothing"
    )
    return rows
