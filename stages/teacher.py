"""Stage `teacher`: a small BERT trained on the tokens, or a model that exists, checked against the tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from stages.config import Config, SourceConfig, TrainTeacherConfig
from stages.context import Context, Figure
from stages.device import resolve_precision
from stages.errors import InputError
from stages.heads import Head
from stages.initial_bert import initial_bert
from stages.masking import Masker
from stages.models import count_parameters, folder_bytes, load_masked_lm, load_tokenizer, resolve_source
from stages.outputs import whole_folder, write_csv, write_json
from stages.provenance import write_resolved
from stages.sequences import TokenStore
from stages.teacher_fit import check_teacher_fits
from stages.teacher_training import Collator, MaskedSequences, held_out_figures, train_bert

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLUMNS = ("step", "loss", "learning_rate")


@dataclass(frozen=True, kw_only=True)
class _Teacher:
    """A teacher in memory, where it comes from, and its learning curve if it was trained here."""

    model: PreTrainedModel
    origin: dict[str, Figure]
    curve: list[dict[str, float]] = field(default_factory=list)


def run(config: Config, context: Context) -> None:
    """Write `models/teacher` (weights, configuration and tokenizer), `runs/teacher.json` and `runs/teacher.csv`.

    Raises `InputError` where the tokens are missing or the model cannot be their teacher, `Interrupted` when asked to
    stop; the folder appears whole or not at all.
    """
    started = time.monotonic()
    artefacts = context.artefacts
    tokens = TokenStore.open(artefacts.tokens)
    collator = Collator(tokens.special_tokens["pad"] or 0)
    if config.teacher.source == "train":
        teacher = _train(cast("TrainTeacherConfig", config.teacher.train), config, context, tokens, collator)
    else:
        teacher = _load(cast("SourceConfig", config.teacher.load), context, tokens)
    quality = held_out_figures(
        teacher.model, tokens.split("validation"), Masker.of(config.masking, tokens, "validation"), collator, context
    )
    with whole_folder(artefacts.teacher) as folder:
        teacher.model.save_pretrained(folder)
        load_tokenizer(tokens.tokenizer_folder).save_pretrained(folder)
        write_resolved(folder, config, "teacher", "masking")
    figures = {
        **teacher.origin,
        **quality,
        "parameters": count_parameters(teacher.model),
        "bytes": folder_bytes(artefacts.teacher),
        "threads": context.threads,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_csv(artefacts.runs / "teacher.csv", COLUMNS, teacher.curve)
    write_json(artefacts.runs / "teacher.json", figures)
    context.progress.summary("teacher", {name.replace("_", " "): value for name, value in figures.items()})


def _train(
    train: TrainTeacherConfig, config: Config, context: Context, tokens: TokenStore, collator: Collator
) -> _Teacher:
    if tokens.longest > train.max_positions:
        raise InputError(
            f"the longest sequence in data/tokens has {tokens.longest} tokens and teacher.train.max_positions gives the "
            f"teacher {train.max_positions} positions; raise it, or lower tokenize.sequence_tokens and run: pipeline tokenize"
        )
    precision = resolve_precision(train.precision, context.device)
    steps = train.steps if precision == "bfloat16" else train.float32_steps
    examples = MaskedSequences(
        tokens.split("train"),
        Masker.of(config.masking, tokens, "train"),
        batch_size=train.batch_size,
        steps=steps,
        seed=train.seed,
    )
    model = initial_bert(train, vocabulary_size=tokens.vocabulary_size, pad_id=collator.pad_id)
    curve = train_bert(model, train, context, examples=examples, collator=collator, steps=steps, precision=precision)
    return _Teacher(model=model, origin={"source": "train", "steps": steps, "precision": precision}, curve=curve)


def _load(source: SourceConfig, context: Context, tokens: TokenStore) -> _Teacher:
    """The model of `source`, in float32. Raises `InputError` where it does not fit the tokens."""
    name, revision = resolve_source(source, context.artefacts.project)
    model = load_masked_lm(name, revision=revision, device=context.device)
    Head.of(model)  # refuses a model whose head is not known
    check_teacher_fits(name, model.config.to_dict(), load_tokenizer(name, revision=revision), tokens)
    origin: dict[str, Figure] = {"source": source.path or name, "precision": "float32"}
    return _Teacher(model=model, origin=origin | ({"revision": revision} if revision else {}))
