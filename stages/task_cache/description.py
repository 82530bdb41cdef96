"""What a task's cache will be: identity, layout and shard plan, from the parameters, the examples and the fine-tuned teacher."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.cache_description import cut_into_shards
from stages.config import Config, to_plain
from stages.config.task_cache import finetuning, hidden_of, task_spec
from stages.context import Context
from stages.errors import InputError
from stages.lasting_task import LastingTask
from stages.model_config import ModelShape
from stages.models import folder_bytes, load_model_config, weights_digest
from stages.sequences import TokenStore
from stages.task_cache.examples import TaskExamples
from stages.tasks import TASKS
from stages.tasks.task import Task
from storage import CacheDescription, Layout, SplitDescription


def describe_task(config: Config, context: Context, tokens: TokenStore, examples: TaskExamples) -> CacheDescription:
    """Identity, layout and shard plan of a task's cache; `context` is of the task, its teacher chosen.

    Raises `InputError` or `ConfigError` where parameters, examples and teacher do not fit each other.
    """
    artefacts = context.artefacts
    name, folder = artefacts.task, artefacts.teacher
    assert name is not None
    task = TASKS[finetuning(config).kind_of(name)]
    teacher_config = load_model_config(folder)
    shape = ModelShape.of(teacher_config)
    if shape.positions is not None and tokens.longest > shape.positions:
        raise InputError(
            f"an input of {name} has {tokens.longest} tokens and {folder} {shape.positions} positions; set "
            f"finetune.tasks.{name}.training.max_tokens to at most {shape.positions} and run: {artefacts.cache_command}"
        )
    config.cache.check_hidden_layers(shape.layers)
    lengths = tokens.split("train").lengths.astype(np.int64)
    split = SplitDescription(
        layout=_layout(config, task, shape, token_types=examples.token_types),
        variants=1,
        sequences=len(lengths),
        tokens=int(lengths.sum()),
        shards=cut_into_shards(lengths, config.cache.shard_tokens),
    )
    reading = LastingTask(context, "read the teacher", folder_bytes(folder), "bytes", kept="reading it keeps nothing")
    made_of = examples.record["made_of"]
    return CacheDescription(
        spec=task_spec(config, name),
        content={
            "teacher": weights_digest(folder, reading),
            **tokens.content_digests(),
            "labels": examples.digest,
            "examples": made_of["examples"],
            "unlabelled": made_of["unlabelled"],
        },
        temperatures=(1.0,),
        vocabulary_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        special_tokens=dict(tokens.special_tokens),
        teacher_config=teacher_config,
        splits={"train": split},
        task={"name": name, "kind": task.kind, "head": task.head, "labels": to_plain(task.labels)},
    )


def _layout(config: Config, task: Task[Any], shape: ModelShape, *, token_types: bool) -> Layout:
    cache, hidden = config.cache, hidden_of(config)
    group = cache.rungs["hidden_group"] if hidden != "none" else Layout.hidden_group
    width = 2 if task.head == "answers" else len(task.labels or ("score",))
    return Layout(
        positions="all",
        hidden=hidden,
        hidden_layers=() if hidden == "none" else cache.hidden_layers or (shape.layers,),
        hidden_group=shape.hidden_size if group == "row" else group,
        logits="none",
        top_k=0,
        task=task.head,
        task_width=width,
        token_types=token_types,
    )


def require_examples(description: CacheDescription, folder: TaskExamples) -> None:
    """Raise `InputError` unless labels and token types are those that the cache was described with, as they were recorded."""
    found, expected = folder.digest, description.content["labels"]
    if found != expected:
        raise InputError(
            f"{folder.folder} was changed since the pass began: the digest of labels and token types is {found[:12]}..., expected "
            f"{expected[:12]}...; run the same command again for a cache of what is there now"
        )
