"""Stage `evaluate`: how close the student is to the teacher on held-out text, from the cache, without the teacher."""

from __future__ import annotations

from stages.cache_location import open_cache
from stages.config import Config
from stages.context import Context
from stages.errors import InputError
from stages.figures import PREDICTION, labels_of
from stages.heads import Head
from stages.held_out import held_out_figures
from stages.models import (
    DIGEST_SHOWN,
    count_parameters,
    folder_bytes,
    load_language_model,
    require_model,
    weights_digest,
)
from stages.outputs import write_json
from stages.provenance import write_resolved


def run(config: Config, context: Context) -> None:
    """Write `runs/evaluation.json`: the student in `models/student` on a cached held-out split.

    Raises `InputError` where the student is missing or student and cache are of different vocabularies.
    """
    artefacts = context.artefacts
    require_model(artefacts.student, "the trained student", "pipeline train-student")
    reader = open_cache(config, context, config.evaluate.split)
    if config.train.ensemble is not None:
        context.progress.message("the teacher of these figures is the main one, and no other of train.ensemble")
    objective = reader.description.objective
    student = load_language_model(artefacts.student, objective=objective, attention=None, device=context.device)
    vocabulary_size = Head.of(student).vocabulary_size
    if vocabulary_size != reader.description.vocabulary_size:
        raise InputError(
            f"models/student has a vocabulary of {vocabulary_size} and the cache one of {reader.description.vocabulary_size}; "
            "expected a student trained from this cache; run: pipeline train-student"
        )
    figures: dict[str, str | int | float] = {
        "split": config.evaluate.split,
        **held_out_figures(
            student, reader, config.evaluate.split, batch_size=config.evaluate.batch_size, context=context
        ),
        "weights": weights_digest(artefacts.student)[:DIGEST_SHOWN],
        "parameters": count_parameters(student),
        "bytes": folder_bytes(artefacts.student),
    }
    write_json(artefacts.runs / "evaluation.json", figures)
    write_resolved(artefacts.runs / "evaluation-config.json", config, "evaluate")
    loss, accuracy, tokens = PREDICTION[objective]
    beside_teacher = {name: f"{figures[name]} (teacher {figures[f'teacher_{name}']})" for name in (loss, accuracy)}
    predicted = "masked" if objective == "masked" else "followed by another"
    context.progress.summary(
        f"student on {config.evaluate.split}",
        {
            **{
                label: beside_teacher.get(name, figures[name])
                for name, label in labels_of(objective).items()
                if name in figures
            },
            "positions": f"{figures['positions']:,}, of which {figures[tokens]:,} are {predicted}",
            "parameters": figures["parameters"],
        },
    )
