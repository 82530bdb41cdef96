"""Stage `teacher`: a small BERT trained on the tokens, an encoder adapted to them, or a model that exists, checked."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from stages.config import AdaptTeacherConfig, Config, SourceConfig, TeacherTraining, TrainTeacherConfig
from stages.context import Context, Figure
from stages.device import resolve_precision
from stages.errors import InputError
from stages.figures import Objective
from stages.heads import Head
from stages.initial_bert import initial_bert
from stages.masking import Masker, masker_of
from stages.model_config import ModelShape
from stages.model_sources import resolve_source
from stages.models import count_parameters, folder_bytes, load_encoder, load_tokenizer
from stages.outputs import whole_folder, write_csv, write_json
from stages.provenance import write_resolved
from stages.sequences import TokenStore
from stages.teacher_fit import check_teacher_fits
from stages.teacher_loading import check_teacher, load_teacher, spread_of
from stages.teacher_training import Collator, MaskedSequences, held_out_figures, train_teacher

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

    Those of a further teacher are called `models/teachers/<name>` and `runs/teacher-<name>.json`.
    Raises `InputError` where the tokens are missing or the model cannot be their teacher, `Interrupted` when asked to
    stop; the folder appears whole or not at all.
    """
    started = time.monotonic()
    artefacts = context.artefacts
    tokens = TokenStore.open(artefacts.tokens)
    collator = Collator(tokens.special_tokens["pad"] or 0)
    teacher = _MAKERS[config.teacher.source](config, context, tokens, collator)
    masker = masker_of(config, tokens, "validation")
    quality = held_out_figures(teacher.model, tokens.split("validation"), masker, collator, context)
    with whole_folder(artefacts.teacher) as folder:
        _save(teacher.model, folder, config.teacher.objective)
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
    write_csv(artefacts.teacher_figures.with_suffix(".csv"), COLUMNS, teacher.curve)
    write_json(artefacts.teacher_figures, figures)
    name = artefacts.further_teacher
    context.progress.summary(
        "teacher" if name is None else f"teacher {name}",
        {name.replace("_", " "): value for name, value in figures.items()},
    )


def _train(config: Config, context: Context, tokens: TokenStore, collator: Collator) -> _Teacher:
    """A small BERT from the weights of `initial_bert`."""
    train = cast("TrainTeacherConfig", config.teacher.train)
    if tokens.longest > train.max_positions:
        raise InputError(
            f"the longest sequence in data/tokens has {tokens.longest} tokens and teacher.train.max_positions gives the "
            f"teacher {train.max_positions} positions; raise it, or lower tokenize.sequence_tokens and run: pipeline tokenize"
        )
    model = initial_bert(train, vocabulary_size=tokens.vocabulary_size, pad_id=collator.pad_id)
    return _trained(model, train, {"source": "train"}, config, context, tokens, collator)


def _adapt(config: Config, context: Context, tokens: TokenStore, collator: Collator) -> _Teacher:
    """A pretrained encoder with an LM head that is new, where it has none, both trained on the tokens.

    Raises `InputError` where it does not fit the tokens.
    """
    adapt, source = cast("AdaptTeacherConfig", config.teacher.adapt), cast("SourceConfig", config.teacher.load)
    name, revision = resolve_source(source, context.artefacts.project)
    model, has_head = load_encoder(name, revision=revision, seed=adapt.seed)
    check_teacher(model, name, "masked")
    _check_fits(model, name, revision, tokens)
    if not has_head:
        # As in `initial_bert`: the encoder already writes in the space of its word embeddings. On a 6 x 384 encoder the
        # loss after 75 steps was 5.75 nats so, and 6.54 with a random matrix.
        dense = Head.of(model).tensors.get("dense.weight")
        if dense is not None:
            nn.init.eye_(dense)
    if adapt.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = adapt.dropout
    return _trained(model, adapt, _origin(source, name, revision), config, context, tokens, collator)


def _load(config: Config, context: Context, tokens: TokenStore, collator: Collator) -> _Teacher:
    """The model as it is: masked ones in float32, causal ones, which may be large, as their files have it.

    Raises `InputError` where it does not fit the tokens.
    """
    del collator
    objective = config.teacher.objective
    source = cast("SourceConfig", config.teacher.load)
    name, revision = resolve_source(source, context.artefacts.project)
    model = load_teacher(
        name,
        objective=objective,
        revision=revision,
        attention=None,
        dtype=torch.float32 if objective == "masked" else "auto",
        device=context.device,
        spread=spread_of(config.machine, context.artefacts.cache_work),
    )
    _check_fits(model, name, revision, tokens)
    precision = str(model.dtype).removeprefix("torch.")
    return _Teacher(model=model, origin={**_origin(source, name, revision), "precision": precision})


_MAKERS: dict[str, Callable[[Config, Context, TokenStore, Collator], _Teacher]] = {
    "train": _train,
    "adapt": _adapt,
    "load": _load,
}
"""By `teacher.source`."""


def _trained(
    model: PreTrainedModel,
    training: TeacherTraining,
    origin: dict[str, Figure],
    config: Config,
    context: Context,
    tokens: TokenStore,
    collator: Collator,
) -> _Teacher:
    precision = resolve_precision(training.precision, context.device)
    steps = training.steps if precision == "bfloat16" else training.float32_steps
    masker = Masker.of(config.masking, tokens, "train")
    examples = MaskedSequences(tokens.split("train"), masker, training, steps=steps)
    curve = train_teacher(
        model, training, context, examples=examples, collator=collator, steps=steps, precision=precision
    )
    return _Teacher(model=model, origin={**origin, "steps": steps, "precision": precision}, curve=curve)


def _check_fits(model: PreTrainedModel, name: str, revision: str | None, tokens: TokenStore) -> None:
    shape = ModelShape.of(model.config.to_dict())
    check_teacher_fits(name, shape, load_tokenizer(name, revision=revision), tokens)


def _save(model: PreTrainedModel, folder: Path, objective: Objective) -> None:
    with warnings.catch_warnings():
        # Each file is put together in main memory: causal teachers may be too large for that at once. Whether this one is
        # must not decide, as the files are part of a cache's identity.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(folder, max_shard_size="5GB" if objective == "causal" else "50GB")


def _origin(source: SourceConfig, name: str, revision: str | None) -> dict[str, Figure]:
    origin: dict[str, Figure] = {"source": source.path or source.package or name}
    return origin | ({"revision": revision} if revision else {})
