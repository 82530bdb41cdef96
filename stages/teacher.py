"""Stage `teacher`: a small BERT trained on the tokens, or a model that exists, checked against the tokens."""

from __future__ import annotations

import csv
import io
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
from stages.outputs import whole_folder, write_json, write_text
from stages.provenance import write_resolved
from stages.sequences import TokenStore
from stages.teacher_training import Collator, MaskedSequences, held_out_figures, train_bert
from storage import Split

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
        teacher.model, tokens.split("validation"), _masker(config, tokens, "validation"), collator, context
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
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(teacher.curve)
    write_text(artefacts.runs / "teacher.csv", text.getvalue())
    write_json(artefacts.runs / "teacher.json", figures)
    context.progress.summary("teacher", {name.replace("_", " "): value for name, value in figures.items()})


def _train(
    train: TrainTeacherConfig, config: Config, context: Context, tokens: TokenStore, collator: Collator
) -> _Teacher:
    if tokens.longest > train.max_positions:
        raise _too_long(tokens.longest, "teacher.train.max_positions gives the teacher", train.max_positions)
    precision = resolve_precision(train.precision, context.device)
    steps = train.steps if precision == "bfloat16" else train.float32_steps
    examples = MaskedSequences(
        tokens.split("train"),
        _masker(config, tokens, "train"),
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
    if model.config.vocab_size < tokens.vocabulary_size:
        raise InputError(
            f"the tokenizer in data/tokens has {tokens.vocabulary_size} entries and the teacher {name} a vocabulary of "
            f"{model.config.vocab_size}; {_OWN_TOKENIZER}"
        )
    positions = model.config.max_position_embeddings
    if tokens.longest > positions:
        raise _too_long(tokens.longest, f"the teacher {name} has", positions)
    own = load_tokenizer(name, revision=revision).get_vocab()
    other = load_tokenizer(tokens.tokenizer_folder).get_vocab()
    if own != other:
        differing = len(own.items() ^ other.items())
        raise InputError(
            f"the tokenizers of the teacher {name} ({len(own)} entries) and of data/tokens ({len(other)} entries) differ in "
            f"{differing} entries: the same id would mean different words; {_OWN_TOKENIZER}"
        )
    origin: dict[str, Figure] = {"source": source.path or name, "precision": "float32"}
    return _Teacher(model=model, origin=origin | ({"revision": revision} if revision else {}))


_OWN_TOKENIZER = (
    "expected the teacher's own tokenizer; set tokenize.tokenizer to load and tokenize.load to the teacher's folder or hub "
    "id, and run: pipeline tokenize"
)


def _too_long(longest: int, whose: str, positions: int) -> InputError:
    return InputError(
        f"the longest sequence in data/tokens has {longest} tokens and {whose} {positions} positions; set "
        f"tokenize.sequence_tokens to at most {positions} and run: pipeline tokenize"
    )


def _masker(config: Config, tokens: TokenStore, split: Split) -> Masker:
    return Masker(
        config.masking,
        split=split,
        token_counts=tokens.token_counts,
        special_ids=tokens.special_ids,
        mask_id=tokens.special_tokens["mask"],
        vocabulary_size=tokens.vocabulary_size,
    )
