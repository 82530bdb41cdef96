"""What a finished training run leaves: the student's folder with its model card, its figures and where it came from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.config import Config
from stages.context import Context
from stages.errors import StageError
from stages.figures import LABELS, closest, labels_of
from stages.held_out import held_out_figures
from stages.model_card import model_card
from stages.models import DIGEST_SHOWN, count_parameters, load_language_model, load_tokenizer, weights_digest
from stages.outputs import whole_folder, write_csv, write_json
from stages.provenance import write_resolved
from stages.students import inputs_of
from stages.training.distiller import PARTS
from stages.training.validation import validations
from storage import CacheReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALWAYS = ("kd", "mlm", "cos")
"""Columns that are there whatever the weights: dvc.yaml names them."""
_IN_WORDS = {
    "kd": "KD loss",
    "mlm": "MLM loss",
    "clm": "CLM loss",
    "cos": "cosine loss",
    "mse": "MSE of the logits",
    "hidden": "MSE of hidden states",
    "relations": "KL of relations",
    "attention": "MSE of attention scores",
}
_ALWAYS_VALIDATED = ("kl_masked", "kl_all")
"""The same of `runs/validation.csv`."""


def publish(
    student: PreTrainedModel,
    config: Config,
    context: Context,
    reader: CacheReader,
    *,
    provenance: dict[str, Any],
    history: list[dict[str, float]],
    figures: dict[str, Any],
) -> None:
    """Write `models/student`, `runs/train.json`, `runs/train.csv`, `runs/validation.csv` and `runs/provenance.json`.

    `history` is the Trainer's log, `figures` what the run says of itself, `provenance` where it comes from. Raises
    `StageError` where the student's figures on the validation split are not finite; nothing is written then.
    """
    artefacts, name = context.artefacts, config.train.student
    steps = [entry for entry in history if "loss" in entry]
    parts = [part for part in PARTS if part in steps[-1]]
    last = {part: round(steps[-1][part], 5) for part in ("loss", *parts)}
    figures = {
        "student": name,
        "parameters": count_parameters(student),
        **figures,
        "cache_root_digest": reader.root_digest,
    }
    with whole_folder(artefacts.student) as folder:
        student.save_pretrained(folder)
        load_tokenizer(reader.folder / "tokenizer", inputs=inputs_of(student)).save_pretrained(folder)
        write_resolved(folder, config, "train", f"students.{name}")
        validation = _validate(folder, config, context, reader)
        card = model_card(
            config,
            reader,
            model_id=artefacts.student.relative_to(artefacts.project).as_posix(),
            figures={**figures, "validation": validation},
            provenance=provenance,
            runs=artefacts.runs.relative_to(artefacts.project).as_posix(),
        )
        card.save(folder / "README.md")
        figures["weights"] = weights_digest(folder)[:DIGEST_SHOWN]
    columns = [part for part in PARTS if part in (*_ALWAYS, *parts)]
    write_csv(artefacts.runs / "train.csv", ("step", "loss", *columns, "learning_rate", "grad_norm"), steps)
    # Without validations on the way the finished student's is the only one.
    held_out = validations(history) or [{"step": figures["kept_step"], **validation}]
    of_objective = labels_of(reader.description.objective)
    shown = [name for name in LABELS if name in (*_ALWAYS_VALIDATED, *of_objective)]
    write_csv(artefacts.runs / "validation.csv", ("step", *shown), held_out)
    write_json(artefacts.runs / "train.json", {**figures, "last": last, "validation": validation})
    write_json(artefacts.runs / "provenance.json", provenance)
    context.progress.summary(
        f"student {name}",
        {
            "parameters": figures["parameters"],
            "steps": f"{figures['steps']:,}, {figures['epochs']:g} epochs, {figures['precision']}",
            **({"weights of step": figures["kept_step"]} if figures["kept_step"] != figures["steps"] else {}),
            "loss at the end": last["loss"],
            **{f"{_IN_WORDS[part]} at the end": last[part] for part in parts},
            **{
                f"{LABELS[figure]} (validation)": validation[figure] for figure in closest(reader.description.objective)
            },
            "cache root digest": reader.root_digest[:12],
            "seconds": figures["seconds"],
        },
    )


def _validate(folder: Path, config: Config, context: Context, reader: CacheReader) -> dict[str, float]:
    """Figures on the validation split of what was saved: loaded anew, so they do not depend on how training ended."""
    student = load_language_model(folder, objective=reader.description.objective, attention=None, device=context.device)
    figures = held_out_figures(student, reader, "validation", batch_size=config.train.micro_batch_size, context=context)
    for name, value in figures.items():
        if not math.isfinite(value):
            raise StageError(
                f"{name} of the trained student on the validation split is {value}; expected a finite number; "
                "lower train.learning_rate and run again"
            )
    return figures
