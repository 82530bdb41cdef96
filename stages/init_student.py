"""Stage `init-student`: the initial weights of one student, from the teacher's blocks or from a seed."""

from __future__ import annotations

from typing import Any

from stages.config import Config, ConfigError, suggest
from stages.config.base import refuse
from stages.context import Context
from stages.errors import InputError
from stages.models import count_parameters, load_masked_lm, load_model_config, load_tokenizer, require_model
from stages.outputs import whole_folder
from stages.provenance import write_resolved
from stages.students import INPUTS, build_student, copy_teacher, layer_map
from storage import CacheReader


def run(config: Config, context: Context, name: str) -> None:
    """Write `models/student-init/<name>`: a Hugging Face folder with weights, configuration and tokenizer.

    `initialise: teacher` copies blocks of `models/teacher`. `initialise: random` needs only the teacher's configuration
    and tokenizer, and takes them from the cache where there is no teacher.
    """
    if name not in config.students:
        raise ConfigError(f"student {name!r} is not in students; {suggest(name, config.students)}")
    student = config.students[name]
    artefacts = context.artefacts
    if student.initialise == "teacher":
        require_model(artefacts.teacher, "the teacher", "pipeline teacher")
        teacher = load_masked_lm(artefacts.teacher)
        teacher_config = load_model_config(artefacts.teacher)
        model = build_student(student, name, teacher_config)
        blocks = layer_map(student, name, teacher_config["num_hidden_layers"])
        copy_teacher(model, teacher, blocks)
        tokenizer = load_tokenizer(artefacts.teacher, inputs=INPUTS)
        origin = f"teacher blocks {', '.join(map(str, blocks))}"
    else:
        teacher_config, tokenizer_folder = _without_weights(context, name)
        model = build_student(student, name, teacher_config)
        tokenizer = load_tokenizer(tokenizer_folder, inputs=INPUTS)
        origin = f"random, seed {student.seed}"
    if model.config.max_position_embeddings < config.tokenize.sequence_tokens:
        raise refuse(
            "tokenize.sequence_tokens",
            config.tokenize.sequence_tokens,
            f"at most {model.config.max_position_embeddings} positions",
        )
    with whole_folder(artefacts.student_init(name)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_resolved(folder, config, f"students.{name}")
    context.progress.summary(
        f"student {name}",
        {
            "blocks": student.layers,
            "hidden size": model.config.dim,
            "parameters": count_parameters(model),
            "weights from": origin,
        },
    )


def _without_weights(context: Context, name: str) -> tuple[dict[str, Any], Any]:
    artefacts = context.artefacts
    if artefacts.teacher.is_dir():
        return load_model_config(artefacts.teacher), artefacts.teacher
    if not artefacts.cache.is_dir():
        raise InputError(
            f"student {name!r} takes vocabulary and width from models/teacher or cache/current, and neither is here; "
            "run: dvc pull cache-teacher, or pipeline teacher"
        )
    reader = CacheReader(artefacts.cache)
    return reader.description.teacher_config, artefacts.cache / "tokenizer"
