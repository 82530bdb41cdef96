"""`pipeline compare`: students trained from one cache, side by side, once per seed.

Each run is `train` with a few values changed (`compare.runs` in params.yaml) and takes the road of any other student:
train-student, then evaluate. Its student lies in models/comparison/<run>/<seed>, its figures in runs/comparison/<run>/<seed>,
its checkpoints where all are. So a comparison that was stopped goes on where it was, and one that is done costs only the
evaluations. The runs may be done one by one, by whom and where it pleases (`only`), and gathered when all are there (`gather`):
that is what a dvc.yaml with a stage for each run does.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.comparison.finished import Finished, read_json
from pipeline.comparison.scores import name_of, scores_of
from pipeline.comparison.table import TEACHER, UNTRAINED, Row, header, markdown, tasks_of, variation_cells
from stages import evaluate, init_student, train_student
from stages.cache_location import open_cache
from stages.config import CompareConfig, Config, load_config, suggest, to_plain
from stages.context import Context, Figure, Progress, Silent
from stages.errors import ConfigError, InputError
from stages.figures import PREDICTION
from stages.finetuning.summary import TaskScores
from stages.models import DIGEST_SHOWN, weights_digest
from stages.outputs import write_json, write_text
from stages.training.run import settings_of
from storage import differing_fields

BEFORE = "before-training"
"""Folder of the student's initial weights among those of the runs."""


Plans = Mapping[str, Mapping[int, Config]]
"""Run -> seed -> its parameters."""


def compare(config: Config, context: Context) -> dict[str, Any]:
    """Train and evaluate every run of `compare.runs` for every seed; write runs/comparison.json and runs/comparison.md.

    Beside them in the table: the teacher, from its cached targets, and the student of `train` before its training. Returns what the
    JSON file holds.

    Raises `ConfigError` where the parameters name no runs or a run contradicts them, and what the stages raise.
    """
    plans = plans_of(config)
    _check(config, context, plans)
    quiet = without_tables(context)
    untrained = _before_training(config, quiet)
    figures: dict[str, list[dict[str, Any]]] = {}
    for number, (name, seeds) in enumerate(plans.items(), start=1):
        figures[name] = []
        for seed, run_config in seeds.items():
            context.progress.message(f"{name}, seed {seed} (run {number} of {len(plans)})")
            figures[name].append(_run(run_config, quiet, run_folder(name, seed)))
    return _publish(config, context, figures, untrained, open_cache(config, context).root_digest)


def only(config: Config, context: Context, name: str) -> dict[str, Any]:
    """Train and evaluate one run of `compare.runs` for every seed, and show no table; of `BEFORE`, evaluate the initial weights.

    Returns `run`, its name, `seeds` and `figures`: those of train.json and evaluation.json, once per seed.

    Raises as `compare` does, and `ConfigError` for a name that is none of these.
    """
    plans = plans_of(config)
    if name == BEFORE:
        _check(config, context, {})
        return {"run": name, "seeds": [], "figures": [_before_training(config, context)]}
    require_run(name, plans)
    _check(config, context, {name: plans[name]})
    figures = []
    for seed, run_config in plans[name].items():
        context.progress.message(f"{name}, seed {seed}")
        figures.append(_run(run_config, context, run_folder(name, seed)))
    return {"run": name, "seeds": list(plans[name]), "figures": figures}


def gather(config: Config, context: Context) -> dict[str, Any]:
    """Write and return what `compare` does, of runs that are there: nothing is trained, and no cache is read.

    Raises `InputError` for a run that is missing, that was trained with other parameters or from another cache than these, or whose
    student is not the one that was evaluated.
    """
    plans = plans_of(config)
    untrained = gathered_before_training(config, context)
    figures = {
        name: [gathered(run_config, context, name, seed) for seed, run_config in seeds.items()]
        for name, seeds in plans.items()
    }
    digests = {run["cache_root_digest"] for runs in figures.values() for run in runs}
    here = read_json(context.artefacts.cache_figures).get("root_digest")
    if len(digests | ({here} if here else set())) > 1:
        of_runs = "; ".join(f"{name} {runs[0]['cache_root_digest'][:12]}" for name, runs in figures.items())
        raise InputError(
            f"the runs are not all of one cache, the one of cache/figures.json ({(here or 'not here')[:12]}): {of_runs}; run the "
            "others again: pipeline compare --only NAME"
        )
    return _publish(config, context, figures, untrained, digests.pop())


def folders_of(config: Config) -> dict[str, str]:
    """Run of `compare.runs` -> its folder below models/comparison and runs/comparison; none where there are no such parameters."""
    return {name: slug(name) for name in (config.compare.runs if config.compare else ())}


def plans_of(config: Config) -> Plans:
    """Every run of `compare.runs`. Raises `ConfigError` where there are none, or a run contradicts the parameters."""
    comparison = config.compare
    if comparison is None:
        raise ConfigError(
            "compare is missing in params.yaml; expected its seeds and runs, as in recipes/minilm/params.yaml"
        )
    _check_names(comparison)
    return {name: {seed: config.of_run(name, seed) for seed in comparison.seeds} for name in comparison.runs}


def require_run(name: str, plans: Plans) -> None:
    """Raise `ConfigError` for a name that is neither a run's nor `BEFORE`."""
    if name not in (*plans, BEFORE):
        raise ConfigError(f"run {name!r} is not in compare.runs; {suggest(name, [*plans, BEFORE])}")


def _check(config: Config, context: Context, plans: Plans) -> None:
    """What would be refused is refused before the first run trains for an hour."""
    train_student.check(config, context)
    for run_config in (run_config for seeds in plans.values() for run_config in seeds.values()):
        train_student.check(run_config, context, initial_weights=run_config.student.initialise == "teacher")


def _check_names(comparison: CompareConfig) -> None:
    """Refuse names of runs that are no name for a folder, share one with another run, or are taken."""
    folders: dict[str, str] = {}
    for name in comparison.runs:
        if not slug(name) or name in (TEACHER, UNTRAINED) or slug(name) == BEFORE:
            raise ConfigError(
                f"compare.runs has {name!r}; allowed: names with Latin letters or digits, which give the folder, other than "
                f"{TEACHER!r}, {UNTRAINED!r} and {BEFORE!r}"
            )
        if folders.setdefault(slug(name), name) != name:
            raise ConfigError(
                f"compare.runs has {folders[slug(name)]!r} and {name!r}, whose folders would both be called {slug(name)!r}; rename one"
            )


def _before_training(config: Config, context: Context) -> Mapping[str, Any]:
    """Figures of the initial weights of `train.student`."""
    artefacts = context.artefacts.of_run(BEFORE)
    shutil.rmtree(artefacts.student, ignore_errors=True)
    shutil.copytree(context.artefacts.student_init(config.train.student), artefacts.student)
    evaluate.run(config, replace(context, artefacts=artefacts))
    return Finished(folder=artefacts.runs).evaluation


def _run(config: Config, context: Context, name: str) -> dict[str, Any]:
    """Train and evaluate one student; its figures."""
    artefacts = context.artefacts.of_run(name)
    context = replace(context, artefacts=artefacts)
    if config.student.initialise == "random":  # of this seed; it needs nothing of the teacher but the cache
        init_student.write_initial_weights(config, context, config.train.student)
    train_student.run(config, context)
    evaluate.run(config, context)
    found = Finished(folder=artefacts.runs)
    return {**found.training, **found.evaluation}


def gathered(config: Config, context: Context, name: str, seed: int) -> dict[str, Any]:
    """The figures of a run that is there, of these parameters. Raises `InputError`."""
    folder = context.artefacts.of_run(run_folder(name, seed)).runs
    shown, again = context.artefacts.shown(folder), f'run: pipeline compare --only "{name}"'
    found = Finished(folder=folder)
    if not (found.training and found.evaluation and found.parameters):
        raise InputError(f"{shown} has no figures of a trained and evaluated student, seed {seed} of {name}; {again}")
    try:
        recorded = load_config(found.parameters)
    except ConfigError as error:
        raise InputError(
            f"{shown} was made with parameters that this version does not know: {error}; {again}"
        ) from error
    differences = [
        *differing_fields(_identity(config), _identity(recorded), found_in="in that run"),
        *differing_fields(
            {"evaluate": {"split": config.evaluate.split}},
            {"evaluate": {"split": found.evaluation["split"]}},
            found_in="in that run",
        ),
    ]
    if differences:
        raise InputError(f"{shown} was made with other parameters: {'; '.join(differences)}; {again}")
    return {**found.training, **found.evaluation}


def _identity(config: Config) -> dict[str, Any]:
    """What a run was trained with, beside its cache."""
    return {"train": settings_of(config.train), "student": to_plain(config.student)}


def gathered_before_training(config: Config, context: Context) -> Mapping[str, Any]:
    """The same of the initial weights of `train.student`."""
    folder, initial = context.artefacts.of_run(BEFORE).runs, context.artefacts.student_init(config.train.student)
    found = Finished(folder=folder).evaluation
    if (
        not found
        or found["split"] != config.evaluate.split
        or (initial.is_dir() and found["weights"] != weights_digest(initial)[:DIGEST_SHOWN])
    ):
        raise InputError(
            f"{context.artefacts.shown(folder)} has no figures of the student {config.train.student!r} before its training, on "
            f"{config.evaluate.split}; run: pipeline compare --only {BEFORE}"
        )
    return found


def _publish(
    config: Config,
    context: Context,
    figures: Mapping[str, Sequence[Mapping[str, Any]]],
    untrained: Mapping[str, Any],
    cache_root_digest: str,
) -> dict[str, Any]:
    split, objective = config.evaluate.split, config.teacher.objective
    assert config.compare is not None, "there are runs"
    seeds, against = config.compare.seeds, config.compare.against
    rows = [
        replace(Row.teacher(untrained, objective), achieved=_achieved(context, {"models/teacher": None})),
        Row.untrained(untrained),
        *(Row.of_runs(name, runs, _achieved(context, _models(name, seeds, runs))) for name, runs in figures.items()),
    ]
    base = next((row for row in rows if row.name == against), None)
    others = [row for row in rows if row.trained and row is not base]
    tokens = PREDICTION[objective][2]
    content = {
        "split": split,
        tokens: untrained[tokens],
        "seeds": list(seeds),
        "cache_root_digest": cache_root_digest,
        # What the runs differ from: the report says so where its own student was trained otherwise.
        "train": to_plain(config.train),
        "student": to_plain(config.student),
        "rows": [row.to_json() for row in rows],
    }
    if base is not None:
        content["variation"] = {"from": base.name, "runs": {row.name: row.variation(base) for row in others}}
    title = f"{split} split, {untrained[tokens]:,} {tokens.replace('_', ' ')}; seeds {', '.join(map(str, seeds))}"
    write_json(context.artefacts.comparison, content)
    write_text(context.artefacts.comparison.with_suffix(".md"), markdown(title, rows, objective, base))
    tasks = tasks_of(rows)
    columns = header(objective, tasks)
    context.progress.table(title, columns, [row.cells(objective, tasks) for row in rows])
    if base is not None:
        differences = [variation_cells(row, base, objective, tasks) for row in others]
        context.progress.table(f"difference from {base.name}", columns, differences)
        for said in (said for row in others for said in row.scored_as(base)[1]):
            context.progress.message(said)
    return content


def _models(name: str, seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Path of each student of a run, as `finetune` has it, and the beginning of its weights' digest."""
    return {
        f"models/comparison/{run_folder(name, seed)}": run["weights"] for seed, run in zip(seeds, runs, strict=True)
    }


def _achieved(context: Context, models: Mapping[str, str | None]) -> dict[str, list[TaskScores]]:
    """Task -> what those models achieved that were fine-tuned, under the names that `finetune` gives by itself."""
    achieved: dict[str, list[TaskScores]] = {}
    for model, weights in models.items():
        by_name, left_out = scores_of(context.artefacts.finetuning, model, weights)
        for name in left_out:
            context.progress.message(
                f"scores of {name} are of weights that {model} no longer has; run: pipeline finetune --replace --model {model}"
            )
        for task, of_task in by_name.get(name_of(model), {}).items():
            achieved.setdefault(task, []).append(of_task)
    return achieved


def run_folder(name: str, seed: int) -> str:
    """Where a run lies for a seed, below models/comparison and runs/comparison."""
    return f"{slug(name)}/{seed}"


def slug(name: str) -> str:
    """A run's name as a folder's: `top-k and the rest` gives `top-k-and-the-rest`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def without_tables(context: Context) -> Context:
    """The same place, which shows what stages do and leaves out their summaries and tables."""
    return replace(context, progress=_WithoutTables(context.progress))


class _WithoutTables(Silent):
    """Passes on all but summaries and tables."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, task: str, total: int | None, unit: str, done: int = 0) -> None:
        self._progress.begin(task, total, unit, done)

    def advance(self, amount: int = 1, **figures: Figure) -> None:
        self._progress.advance(amount, **figures)

    def message(self, text: str) -> None:
        self._progress.message(text)
