"""The commands. Each imports its stage when it is invoked, so that `pipeline --help` needs click and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cache_commands import cache
from pipeline.compare_command import compare
from pipeline.completion import completion, declared, recipe_names
from pipeline.examples import add_examples
from pipeline.option_values import folder_name, numbers, part_of
from pipeline.stage_command import of_task, of_teacher, stage_command

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Context
    from storage import Part


class InOrder(click.Group):
    """Lists its commands in the order of the road, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(self.commands)


@click.group(cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="teacher-cache")
def cli() -> None:
    """Offline distillation: run the teacher once, train students from its cache.

    Every value is in params.yaml of the project folder; `dvc repro` runs the commands in the order below, and only
    those whose inputs changed.

    Exit codes: 0 done, 1 failed, 2 wrong usage or parameters, 75 another process writes this cache, 130 and 143
    interrupted (the same command resumes).
    """


@cli.command()
@click.argument("recipe", required=False, shell_complete=recipe_names)
@click.option(
    "--into",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty folder; it is made where there is none.",
)
def init(recipe: str | None, folder: Path) -> None:
    """Begin a project from a recipe.

    Writes params.yaml, dvc.yaml, .gitignore and .dvcignore into an empty folder, where `dvc repro` then runs. Without
    RECIPE: lists the recipes. What each is, needs and costs: docs/recipes.md.
    """
    if recipe is None and folder != Path():
        raise click.UsageError("--into needs a RECIPE; `pipeline init` lists them")
    from pipeline import init as beginning
    from pipeline.failures import reported
    from pipeline.stop import StopRequest

    with StopRequest() as stop, reported(stop, debug=False):
        if recipe is None:
            beginning.show_recipes()
        else:
            beginning.initialise(recipe, folder)


@cli.command()
@stage_command(tensors=False, takes_workers=True, takes_dry_run=True)
def corpus(config: Config, context: Context) -> None:
    """Collect documents and split them.

    Writes data/documents: train, validation and test. Parameters: corpus.
    """
    from stages import corpus as stage

    stage.run(config, context)


@cli.command()
@stage_command(tensors=False, takes_workers=True, takes_dry_run=True)
def tokenize(config: Config, context: Context) -> None:
    """Turn documents into sequences of token ids.

    Reads data/documents, writes data/tokens: sequences with fixed ids, token counts and the tokenizer. Parameters:
    tokenize.
    """
    from stages import tokenize_corpus as stage

    stage.run(config, context)


@cli.command()
@click.argument("name", required=False, shell_complete=declared("teachers"))
@stage_command(takes_dry_run=True)
def teacher(config: Config, context: Context, name: str | None) -> None:
    """Train a small teacher, or fetch one.

    Reads data/tokens, writes models/teacher and runs/teacher.json. Parameters: teacher, masking. NAME is a further teacher, one
    of teachers in params.yaml: it is written to models/teachers/NAME and runs/teacher-NAME.json.
    """
    from stages import teacher as stage

    if name is None:
        stage.run(config, context)
    else:
        of_teacher(stage.run, name)(config, context)


@cli.command()
@click.option(
    "--workers",
    "worker_counts",  # `workers` is how many do the work
    default="1,2,4,8",
    show_default=True,
    metavar="N,N,...",
    callback=numbers,
    help="For how many workers to give the time.",
)
@click.option(
    "--sample-tokens",
    default=20_480,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens to run through the teacher, about; more is closer, and slower.",
)
@stage_command(takes_root=True, takes_teacher=True, own_json=True, logged=False)
def plan(config: Config, context: Context, worker_counts: list[int], sample_tokens: int, json_file: str | None) -> None:
    """Say what a cache will cost, and when it pays.

    Reads data/tokens and models/teacher, runs the teacher on a small sample, and writes nothing: size by preset, room and speed of
    the disk, hours on N workers, the number of students from which the cache costs less than the teacher in their loops. With
    --teacher of the cache of a further teacher, whose model is in models/teachers/NAME.
    """
    from pipeline import plan as planning

    planning.make(config, context, workers=worker_counts, sample_tokens=sample_tokens, json_file=json_file)


@cli.command("cache-teacher")
@click.option(
    "--verify",
    is_flag=True,
    help="With --root only: read back all that is there, and compute again and replace what is damaged.",
)
@click.option(
    "--shards",
    "part",
    metavar="I/N",
    callback=part_of,
    help="Do only every N-th shard, from the I-th on, beside jobs that do the others; run it once more without to finish.",
)
@stage_command(takes_root=True, takes_workers=True, takes_teacher=True, takes_task=True, takes_dry_run=True)
def cache_teacher(config: Config, context: Context, verify: bool, part: Part | None) -> None:
    """Run the teacher once and store its targets.

    Reads data/tokens and models/teacher, writes cache/current and cache/run.json. Killed at any moment, it resumes
    from the shards that are whole. With --root the shards go there as they come, and cache/manifest.json is what stays
    here. Parameters: corpus, tokenize, masking, teacher, cache. With --teacher all is in models/teachers/NAME and
    cache/teachers/NAME. With --task what models/finetuned/teacher/NAME says of that task is stored in cache/tasks/NAME, for
    `pipeline finetune --distil`; with cache.targets: task, of each task of finetune.tasks.
    """
    from stages import cache_teacher as stage
    from stages.config.task_cache import finetuning

    if verify and part is not None:
        raise click.UsageError("--verify is for the whole cache: leave --shards out")
    if verify and context.artefacts.root is None:
        raise click.UsageError(
            "--verify reads back the cache at a root: add --root URL; one in cache/current is verified by `pipeline cache verify`"
        )
    artefacts = context.artefacts
    if config.cache.targets == "language_model" or artefacts.further_teacher is not None or artefacts.task is not None:
        stage.run(config, context, verify=verify, part=part)
        return
    for name in finetuning(config).tasks:
        of_task(stage.run, name)(config, context, verify=verify, part=part)


@cli.command("init-student")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=declared("students"))
@stage_command(takes_root=True, takes_dry_run=True)
def init_student(config: Config, context: Context, names: tuple[str, ...]) -> None:
    """Build the initial weights of students.

    Reads models/teacher, writes models/student-init/NAME for the students named, else for all. Parameters: students.
    """
    from stages import init_student as stage

    for name in names or config.students:
        stage.run(config, context, name)


@cli.command("train-student")
@stage_command(torchrun=True, takes_root=True, takes_dry_run=True)
def train_student(config: Config, context: Context) -> None:
    """Train the student from the cache alone.

    Which one is train.student. Reads cache/current and models/student-init, writes models/student, runs/train.json,
    runs/train.csv and runs/validation.csv; keeps checkpoints/ to resume from.
    """
    from stages import train_student as stage

    stage.run(config, context)


@cli.command()
@click.option(
    "--speed",
    is_flag=True,
    help="Measure size and speed instead, beside the teacher's: writes runs/speed.json (docs/speed.md).",
)
@click.option(
    "--sentences",
    "sentences_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --speed: on these, a sentence a line or a .tsv in GLUE's layout. Default: the cached split.",
)
@click.option(
    "--batch-sizes",
    metavar="N,N,...",
    default=None,
    callback=lambda context, option, value: None if value is None else numbers(context, option, value),
    help="With --speed: of the batches that throughput is measured with. Default: 8,32.",
)
@click.option(
    "--onnx",
    is_flag=True,
    help="With --speed: in ONNX Runtime too, float32 and int8; the student's files are left in models/onnx.",
)
@stage_command(takes_root=True, takes_dry_run=True)
def evaluate(
    config: Config,
    context: Context,
    speed: bool,
    sentences_file: Path | None,
    batch_sizes: list[int] | None,
    onnx: bool,
) -> None:
    """Compare the student with the teacher.

    Reads models/student and the cached targets of a split that it was not trained on, writes runs/evaluation.json.
    Parameters: evaluate. With --speed nothing of that: how large and how fast both are, on real sentences.
    """
    if speed:
        from stages.speed import on_text

        sizes = on_text.BATCH_SIZES if batch_sizes is None else batch_sizes
        on_text.run(config, context, sentences_file=sentences_file, batch_sizes=sizes, onnx=onnx)
        return
    if sentences_file is not None or batch_sizes is not None or onnx:
        raise click.UsageError("--sentences, --batch-sizes and --onnx are for --speed: add it")
    from stages import evaluate as stage

    stage.run(config, context)


@cli.command()
@click.argument("tasks", metavar="[TASK]...", nargs=-1, shell_complete=declared("finetune.tasks"))
@click.option(
    "--model",
    default="student",
    show_default=True,
    metavar="MODEL",
    help="student, teacher, or the folder of a Hugging Face model, relative to the project.",
)
@click.option(
    "--name",
    metavar="NAME",
    callback=folder_name,
    help="What its results are called. Default: student, teacher, or the folder's name.",
)
@click.option("--replace", is_flag=True, help="Remove results of that name with other parameters, weights or data.")
@click.option(
    "--distil",
    is_flag=True,
    help="Learn from the fine-tuned teacher's cached answers (pipeline cache-teacher --task): results are called NAME-distilled.",
)
@stage_command(takes_root=True, takes_dry_run=True)
def finetune(
    config: Config,
    context: Context,
    tasks: tuple[str, ...],
    model: str,
    name: str | None,
    replace: bool,
    distil: bool,
) -> None:
    """Fine-tune a model on downstream tasks, and score it.

    Each task of finetune.tasks, or those named, once per seed: GLUE, IMDb, SQuAD v1.1. Writes
    runs/finetune/MODEL/TASK/SEED.json, and summary.json, summary.md and summary.png of all models beside. What is done is
    not done again; stopped at any moment, it goes on where it was. Parameters: finetune (docs/finetuning.md).
    """
    from stages import finetune as stage

    stage.run(config, context, tasks=tasks, model=model, name=name, replace_others=replace, distil=distil)


@cli.command()
@stage_command(tensors=False, takes_dry_run=True)
def report(config: Config, context: Context) -> None:
    """Show what the run did, on one page.

    Reads the figures in runs/ and cache/, and runs/comparison.json where it is there; writes report/index.html, which
    needs no network, and its plots. Parameters: those that the run recorded.
    """
    from stages import report as stage

    stage.run(config, context)


cli.add_command(compare)
cli.add_command(cache)
cli.add_command(completion)
add_examples(cli)
