"""What the stages would do whose inputs and outputs are plain files."""

from __future__ import annotations

from typing import Any

from pipeline.dry_run.cache import cache_input
from pipeline.dry_run.files import MISSING, inputs, recorded, show, wanted_of, wanted_of_teacher
from stages.config import Config, to_plain
from stages.context import Context, Figure
from stages.errors import ConfigError, StageError


def corpus(config: Config, context: Context) -> None:
    """What `pipeline corpus` would read and write."""
    rows: dict[str, Figure] = {"reads": f"corpus.source: {config.corpus.source}"}
    if config.corpus.files is not None and config.corpus.source == "files":
        from stages.documents.files import listed_files

        try:
            listed = listed_files(config.corpus.files, context.artefacts.project.absolute())
            size = sum(file.stat().st_size for file in listed.files.values())
            rows["reads"] = f"{len(listed.files):,} files, {size / 1e6:,.1f} megabytes"
            if listed.left_out:
                rows["does not read"] = listed.says_left_out()
        except StageError as error:
            rows["reads"] = f"{MISSING}: {error}"
    show(context, "corpus", rows, {context.artefacts.documents: wanted_of(config, "corpus")})


def tokenize(config: Config, context: Context) -> None:
    """What `pipeline tokenize` would read and write."""
    documents = context.artefacts.documents
    rows = inputs(context, {documents: wanted_of(config, "corpus")})
    if documents.is_dir():
        size = sum(file.stat().st_size for file in documents.glob("*.parquet"))
        rows["megabytes of documents, compressed"] = round(size / 1e6, 1)
    show(context, "tokenize", rows, {context.artefacts.tokens: wanted_of(config, "tokenize")})


def teacher(config: Config, context: Context, name: str | None = None) -> None:
    """What `pipeline teacher [NAME]` would read and write."""
    if name is not None:
        config, context = config.of_teacher(name), context.of_teacher(name)
    rows, training = inputs(context, {context.artefacts.tokens: wanted_of(config, "tokenize")}), config.teacher.training
    rows["trains"] = (
        "nothing: the model is taken as it is"
        if training is None
        else f"{training.steps:,} steps of {training.batch_size} sequences ({training.float32_steps:,} in float32)"
    )
    show(context, "teacher", rows, {context.artefacts.teacher: wanted_of_teacher(config)})


def init_student(config: Config, context: Context, names: tuple[str, ...]) -> None:
    """What `pipeline init-student` would read and write, for each student."""
    for name in names or config.students:
        if name not in config.students:
            from stages.config import suggest

            raise ConfigError(f"student {name!r} is not in students; {suggest(name, config.students)}")
        rows = inputs(context, {context.artefacts.teacher: wanted_of_teacher(config)})
        wanted = {"students": {name: to_plain(config.students[name])}}
        show(context, f"init-student {name}", rows, {context.artefacts.student_init(name): wanted})


def evaluate(config: Config, context: Context, *, speed: bool, **_arguments: Any) -> None:
    """What `pipeline evaluate` would read and write."""
    artefacts = context.artefacts
    rows = inputs(context, {artefacts.student: None})
    if speed:
        rows.update(inputs(context, {artefacts.teacher: None}))
        show(context, "evaluate --speed", rows, {artefacts.speed_on_text: None})
        return
    if artefacts.root is None:
        rows.update(cache_input(config, artefacts))
    rows["split"] = config.evaluate.split
    evaluation, training = (recorded(artefacts.runs / f"{file}.json") for file in ("evaluation", "train"))
    show(context, "evaluate", rows, {artefacts.runs / "evaluation.json": None})
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
    show(context, "report", inputs(context, dict.fromkeys(read)), {artefacts.report / "index.html": None})
