"""Stage `init-student`: the initial weights of one student, and its size and speed beside the teacher's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stages.cache_location import open_cache
from stages.config import Config, ConfigError, StudentConfig, suggest
from stages.config.base import refuse
from stages.context import Context
from stages.errors import InputError
from stages.figures import Objective
from stages.model_config import ModelShape
from stages.models import (
    folder_bytes,
    language_model_from_config,
    load_language_model,
    load_model_config,
    load_tokenizer,
    require_model,
)
from stages.outputs import whole_folder, write_json
from stages.provenance import write_resolved
from stages.speed.shapes import MAX_TOKENS, compare_speed
from stages.students import build_student, copied_blocks, copy_teacher, in_words, inputs_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(config: Config, context: Context, name: str) -> None:
    """Write `models/student-init/<name>` and, in `runs/speed-<name>.json`, size and speed of student and teacher.

    Raises as `write_initial_weights` does, and `Interrupted` between two measurements.
    """
    write_initial_weights(config, context, name)
    artefacts, student = context.artefacts, config.students[name]
    teacher_config, _ = _teacher_shape(config, context, name)
    shape = ModelShape.of(teacher_config)
    figures = _measure(config, context, name, teacher_config)
    write_json(artefacts.speed(name), figures)
    ratio = figures["ratio"]
    rows: dict[str, str | int] = {
        "blocks": f"{student.layers} of the teacher's {shape.layers}",
        "hidden size": student.hidden_size or shape.hidden_size,
        "parameters": f"{figures['student']['parameters']:,} ({ratio['parameters']:.0%} of the teacher's)",
        "megabytes": f"{figures['student']['bytes'] / 1e6:.1f} ({ratio['bytes']:.0%} of the teacher's)",
    }
    for device in ("cpu", "cuda"):
        if device in ratio:
            rows[f"{device.upper()} latency"] = (
                f"{figures['student'][device]['latency_ms']:.2f} ms: {1 / ratio[device]['latency']:.1f} times the teacher's speed"
            )
            rows[f"{device.upper()} throughput"] = (
                f"{figures['student'][device]['sequences_per_second']:,.0f} sequences/s: "
                f"{ratio[device]['throughput']:.1f} times the teacher's"
            )
    rows["weights from"] = (
        f"random, seed {student.seed}"
        if student.initialise == "random"
        else f"the teacher's {in_words(copied_blocks(student, name, shape.layers))}"
    )
    context.progress.summary(f"student {name}", rows)


def write_initial_weights(config: Config, context: Context, name: str) -> None:
    """Write `models/student-init/<name>` alone: a Hugging Face folder with weights, configuration and tokenizer.

    `initialise: teacher` copies blocks of `models/teacher`. `initialise: random` needs only the teacher's configuration
    and tokenizer, and takes them from the cache where there is no teacher. Raises `ConfigError` for a student that is not
    declared or not possible, `InputError` where what it is made from is missing.
    """
    student, artefacts, objective = _declared(config, name), context.artefacts, config.teacher.objective
    if student.initialise == "teacher":
        require_model(artefacts.teacher, "the teacher", "pipeline teacher")
    teacher_config, tokenizer_folder = _teacher_shape(config, context, name)
    model = build_student(student, name, teacher_config, objective)
    if student.initialise == "teacher":
        blocks = copied_blocks(student, name, ModelShape.of(teacher_config).layers)
        copy_teacher(student, model, _teacher(artefacts.teacher, objective), blocks)
    positions = ModelShape.of(model.config.to_dict()).positions
    if positions is not None and positions < config.tokenize.sequence_tokens:
        raise refuse("tokenize.sequence_tokens", config.tokenize.sequence_tokens, f"at most {positions} positions")
    tokenizer = load_tokenizer(tokenizer_folder, inputs=inputs_of(model))
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer in {tokenizer_folder} has {len(tokenizer)} entries and the student's vocabulary, its teacher's, "
            f"{model.config.vocab_size}; expected the teacher's own tokenizer; run: pipeline tokenize, and pipeline teacher"
        )
    with whole_folder(artefacts.student_init(name)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_resolved(folder, config, f"students.{name}")


def _teacher(folder: Path, objective: Objective) -> PreTrainedModel:
    """To be copied from: causal ones, which may be large, in the arithmetic of their files."""
    return load_language_model(
        folder, objective=objective, attention=None, dtype="auto" if objective == "causal" else torch.float32
    )


def _declared(config: Config, name: str) -> StudentConfig:
    if name not in config.students:
        raise ConfigError(f"student {name!r} is not in students; {suggest(name, config.students)}")
    return config.students[name]


def _teacher_shape(config: Config, context: Context, name: str) -> tuple[dict[str, Any], Path]:
    """The teacher's configuration and the folder of its tokenizer: from the teacher, or from the cache where there is none."""
    artefacts = context.artefacts
    if artefacts.teacher.is_dir():
        return load_model_config(artefacts.teacher), artefacts.teacher
    if artefacts.root is None and not artefacts.cache.is_dir():
        raise InputError(
            f"student {name!r} takes vocabulary and width from models/teacher or cache/current, and neither is here; "
            "run: dvc pull cache-teacher, or pipeline teacher"
        )
    reader = open_cache(config, context)
    return reader.description.teacher_config, reader.folder / "tokenizer"


def _measure(config: Config, context: Context, name: str, teacher_config: dict[str, Any]) -> dict[str, Any]:
    artefacts = context.artefacts
    folder = artefacts.student_init(name)
    # Size and speed are those of the shape: the teacher's own weights need not be read, nor be there.
    objective = config.teacher.objective
    student = load_language_model(folder, objective=objective, attention=None)
    teacher = language_model_from_config(teacher_config, objective)
    positions = [ModelShape.of(model.config.to_dict()).positions or MAX_TOKENS for model in (student, teacher)]
    return compare_speed(
        student,
        teacher,
        student_bytes=folder_bytes(folder),
        teacher_bytes=folder_bytes(artefacts.teacher) or _saved_bytes(teacher),
        sequence_tokens=min(MAX_TOKENS, config.tokenize.sequence_tokens, *positions),
        context=context,
    )


def _saved_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights as they would be saved."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return folder_bytes(Path(folder))
