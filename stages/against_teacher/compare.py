"""Runs sequences of a cache through its teacher, and compares what it says with what is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.against_teacher.agreement import Agreement, same_hardware, spread
from stages.against_teacher.language_model import compare_language_model
from stages.against_teacher.task import compare_task
from stages.config import MachineConfig
from stages.context import Context
from stages.errors import InputError
from stages.models import require_model, weights_digest
from stages.task_cache.teacher import with_teacher_of
from storage import CacheDescription, CacheReader, ShardId


def compare_with_teacher(
    reader: CacheReader,
    context: Context,
    sequences: int,
    computed_with: Mapping[ShardId, Mapping[str, Any]],
    machine: MachineConfig | None = None,
) -> Agreement:
    """Run `sequences` sequences of the cache, spread evenly over its shards, through the teacher and compare.

    The teacher of a task's cache is looked for among those that were fine-tuned on that task.

    `computed_with` is what the manifests of the shards say; with a `machine` that has a `device_map` the teacher of a language model
    is spread over devices as that says. Raises `InputError` where the teacher is missing or is not the one that the cache was
    made with, `CorruptError` where a shard cannot be read.
    """
    description = reader.description
    chosen = spread(description, sequences)
    same = all(same_hardware(computed_with.get(shard, {}), context) for shard in chosen)
    number = sum(map(len, chosen.values()))
    if description.task is None:
        _require_teacher(description, context)
        context.progress.begin("compare with the teacher", number, "sequences")
        positions, measured = compare_language_model(reader, context, chosen, same=same, machine=machine)
    else:
        context = with_teacher_of(description, context)
        context.progress.begin("compare with the teacher", number, "sequences")
        positions, measured = compare_task(reader, context, chosen, same=same)
    return Agreement(sequences=number, positions=positions, same_hardware=same, measured=measured)


def _require_teacher(description: CacheDescription, context: Context) -> None:
    """Refuse a teacher that is missing, or another one."""
    folder = context.artefacts.teacher
    require_model(folder, "the teacher of the cache", "dvc pull models/teacher")
    found, expected = weights_digest(folder), description.content.get("teacher")
    if found != expected:
        raise InputError(
            f"{folder} is not the teacher of this cache: content.teacher is {str(expected)[:12]}... in the cache and "
            f"{found[:12]}... there; fetch the right one with `dvc pull models/teacher` or `git checkout` of the cache's commit"
        )
