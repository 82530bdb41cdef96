"""A task's examples become token sequences, once: what the teacher's pass reads, and what the student will see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from stages.config import FinetuneConfig, TaskTraining
from stages.config.task_cache import encoding_of
from stages.context import Context
from stages.errors import InputError
from stages.outputs import whole_folder
from stages.sequences import (
    COUNTS,
    TOKENIZER,
    SequenceSplit,
    SequenceWriter,
    SplitFigures,
    TokenStore,
    write_description,
)
from stages.task_cache.examples import TaskExamples, write_examples
from stages.task_models import BaseModel
from stages.tasks.data import TaskData, examples_digest, read_unlabelled
from stages.tasks.task import Row, Task
from stages.tokenizer import special_token_ids
from storage import SPLITS, Split
from storage.arrays import id_dtype
from storage.locking import publishing

VERSION = 1
"""Raised by hand when a change of code gives other sequences for the same examples and parameters."""
_GROUP = 10_000
"""Sequences in a row group."""


def encode_examples(
    name: str,
    task: Task[Any],
    settings: FinetuneConfig,
    training: TaskTraining,
    base: BaseModel,
    read: TaskData[Any],
    context: Context,
) -> TaskExamples:
    """Write `data/tasks/<name>` unless it is there and of these examples and parameters; labelled examples come first.

    `read` are the task's examples: those to learn from are written.

    Unlabelled ones that are scored elsewhere are left out. Jobs that begin together write it once. Raises `InputError` for data that
    cannot be used, `Interrupted` when asked to stop.
    """
    artefacts = context.artefacts
    texts = read_unlabelled(settings, name, task, artefacts.project, context.progress.message)
    data, texts = read.train, _not_scored(texts, read, name, task, context)
    made_of = {
        "version": VERSION,
        **encoding_of(task.kind, training),
        "examples": examples_digest({"": data}),
        "unlabelled": examples_digest({"": texts}),
        "tokenizer": base.tokenizer_digest,
        "token_types": base.token_types,
    }
    artefacts.cache_work.mkdir(parents=True, exist_ok=True)
    with publishing(artefacts.cache_work, f"examples-{name}"):
        found = _kept(artefacts.tokens, made_of)
        return _write(name, task, training, base, context, data, texts, made_of) if found is None else found


def _not_scored(texts: list[Any], data: TaskData[Any], name: str, task: Task[Any], context: Context) -> list[Any]:
    """The texts that are neither in the evaluation nor in the validation: the student must not learn what is said of those."""
    scored = {
        task.asks(example)
        for sets in (data.evaluation, data.validation)
        for examples in sets.values()
        for example in examples
    }
    kept = [text for text in texts if task.asks(text) not in scored]
    if len(kept) < len(texts):
        context.progress.message(
            f"{name}: left out {len(texts) - len(kept):,} texts without labels that are examples to be scored"
        )
    return kept


def _write(
    name: str,
    task: Task[Any],
    training: TaskTraining,
    base: BaseModel,
    context: Context,
    data: Sequence[Any],
    texts: Sequence[Any],
    made_of: dict[str, Any],
) -> TaskExamples:
    artefacts = context.artefacts
    context.progress.begin(f"tokenize {name}", len(data) + len(texts), "examples")

    def done(examples: int) -> None:
        context.progress.advance(examples)
        context.stop_if_asked("nothing is kept of it: it takes little time")

    rows = [
        task.encode(examples, base.tokenizer, training, learning=learning, done=done).rows if examples else []
        for examples, learning in ((data, True), (texts, False))
    ]
    with whole_folder(artefacts.tokens) as folder:
        _write_tokens(folder, [*rows[0], *rows[1]], base)
        write_examples(folder, rows[0], rows[1], task.head, made_of)
    return TaskExamples.open(artefacts.tokens)


def _kept(folder: Path, made_of: dict[str, Any]) -> TaskExamples | None:
    """What is in the folder where it is of just that, and as it was written."""
    try:
        found = TaskExamples.open(folder)
        if found.record["made_of"] != made_of:
            return None
        found.check()
        TokenStore.open(folder).content_digests()
    except InputError:
        return None
    return found


def _write_tokens(folder: Path, rows: Sequence[Row], base: BaseModel) -> None:
    """A token store: all rows are its train split, the other two are empty."""
    base.save_tokenizer(folder / TOKENIZER)
    vocabulary_size = max(base.tokenizer.get_vocab().values()) + 1
    counts = np.zeros(vocabulary_size, np.int64)
    lengths = np.array([len(row["input_ids"]) for row in rows], np.int64)
    splits: dict[Split, SplitFigures] = {}
    for split in SPLITS:
        chosen = rows if split == "train" else []
        with SequenceWriter(folder / f"{split}.parquet", id_dtype(vocabulary_size)) as writer:
            for start in range(0, len(chosen), _GROUP):
                ids = np.concatenate([row["input_ids"] for row in chosen[start : start + _GROUP]])
                writer.write_group(lengths[start : start + _GROUP], ids)
                counts += np.bincount(ids, minlength=vocabulary_size)
        of_split = lengths[: len(chosen)]
        splits[split] = SplitFigures(
            sequences=len(chosen),
            tokens=int(of_split.sum()),
            longest=int(of_split.max(initial=0)),
            sha256=SequenceSplit(folder / f"{split}.parquet").digest(),
        )
    pq.write_table(pa.table({"count": counts}), folder / COUNTS)
    write_description(
        folder,
        vocabulary_size=vocabulary_size,
        special_tokens=special_token_ids(cast("PreTrainedTokenizerFast", base.tokenizer)),
        special_ids=tuple(sorted(set(base.tokenizer.all_special_ids))),
        splits=splits,
    )
