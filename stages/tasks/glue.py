"""The nine tasks of GLUE (Wang et al. 2019, arXiv 1804.07461): layouts of its TSV files, and its official figures.

The score of a task with two figures is their mean, as in GLUE's own leaderboard; that of MNLI is the mean over its two dev sets.
"""

from __future__ import annotations

from collections.abc import Mapping

from stages.config.finetune import TaskKind
from stages.tasks.classification import Classification, Tsv
from stages.tasks.metrics import Metric
from stages.tasks.task import Layout

ENTAILMENT = ("entailment", "not_entailment")
NO, YES = "0", "1"


def _task(
    kind: TaskKind,
    configuration: str,
    texts: tuple[str, ...],
    labels: tuple[str, ...] | None,
    measures: tuple[Metric, ...],
    tsv: Tsv | None = None,
    sets: Mapping[str, str] | None = None,
) -> Classification:
    """`sets`: the dev sets by name and how their files end."""
    suffixes = sets or {"": ""}

    def files(name: str) -> tuple[str, ...]:
        return (f"{name}.tsv", f"{name}.parquet", f"{name}.csv")

    return Classification(
        kind=kind,
        layout=Layout(
            train=files("train"),
            evaluation={name: files(f"dev{suffix}") for name, suffix in suffixes.items()},
            hub="glue",
            configuration=configuration,
            evaluation_splits={name: f"validation{suffix}" for name, suffix in suffixes.items()},
        ),
        texts=texts,
        labels=labels,
        measures=measures,
        tsv=tsv or Tsv(texts=texts, label="label"),
    )


_TASKS = (
    _task(
        "CoLA",
        "cola",
        ("sentence",),
        (NO, YES),
        ("matthews",),
        Tsv(texts=("sentence",), label="label", header=("source", "label", "mark", "sentence")),
    ),
    _task("SST-2", "sst2", ("sentence",), (NO, YES), ("accuracy",)),
    _task(
        "MRPC",
        "mrpc",
        ("sentence1", "sentence2"),
        (NO, YES),
        ("f1", "accuracy"),
        Tsv(texts=("#1 String", "#2 String"), label="Quality"),
    ),
    _task(
        "STS-B",
        "stsb",
        ("sentence1", "sentence2"),
        None,
        ("pearson", "spearman"),
        Tsv(texts=("sentence1", "sentence2"), label="score"),
    ),
    _task(
        "QQP",
        "qqp",
        ("question1", "question2"),
        (NO, YES),
        ("f1", "accuracy"),
        Tsv(texts=("question1", "question2"), label="is_duplicate", skip_short=True),
    ),
    _task(
        "MNLI",
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        Tsv(texts=("sentence1", "sentence2"), label="gold_label"),
        {"matched": "_matched", "mismatched": "_mismatched"},
    ),
    _task("QNLI", "qnli", ("question", "sentence"), ENTAILMENT, ("accuracy",)),
    _task("RTE", "rte", ("sentence1", "sentence2"), ENTAILMENT, ("accuracy",)),
    _task("WNLI", "wnli", ("sentence1", "sentence2"), (NO, YES), ("accuracy",)),
)

GLUE: dict[TaskKind, Classification] = {task.kind: task for task in _TASKS}

TEXT_COLUMNS = tuple(
    sorted(
        {task.tsv.texts for task in _TASKS if task.tsv and not task.tsv.header}, key=lambda texts: (-len(texts), texts)
    )
)
"""The columns with the texts in all TSV files that begin with a line of names, those of two texts first."""
