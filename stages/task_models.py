"""Models with the head that a downstream task needs, and the tokenizer that goes with them."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    set_seed,
)

from stages.config import TaskTraining
from stages.errors import InputError
from stages.model_config import ModelShape
from stages.models import from_files, load_model_config, load_tokenizer, refuse_unfit
from stages.tasks.task import Heads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CLASSES: dict[Heads, Any] = {
    "classification": AutoModelForSequenceClassification,
    "answers": AutoModelForQuestionAnswering,
}
_FAMILIES: dict[Heads, Any] = {
    "classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "answers": MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}
_IN_WORDS: dict[Heads, str] = {"classification": "sequence classifier", "answers": "question-answering model"}
_POOLER = "pooler"
"""Part of BERT's base model that masked language models do without: where it is missing, it is new, as the head."""


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A model folder whose model is to get a head."""

    folder: Path
    kind: str
    """`model_type` of its configuration."""
    positions: int | None
    """Tokens of the longest sequence that it takes; None where its family knows no limit."""
    pad_id: int
    token_types: bool
    """Whether it tells the two texts of an input apart by them."""
    tokenizer: PreTrainedTokenizerBase
    tokenizer_as_loaded: str
    """SHA-256 (hex) of its files' content: later it also knows what it was last told to cut."""

    @classmethod
    def of(cls, folder: Path, heads: set[Heads]) -> BaseModel:
        """What is in the folder. Raises `InputError` for a model that is damaged, or of a family that has not all of `heads`."""
        config = load_model_config(folder)
        kind = config["model_type"]
        classes = {}
        for head in sorted(heads):
            classes[head] = _FAMILIES[head].get(CONFIG_MAPPING[kind], None)
            if classes[head] is None:
                raise InputError(
                    f"models of type {kind!r} ({folder}) have no head for it: transformers knows no {_IN_WORDS[head]} of that "
                    "family; expected another model, or other tasks"
                )
        # BERT has a table for both texts; RoBERTa's has one entry, DistilBERT has none, and GPT-2 means something else by it.
        has_types = config.get("type_vocab_size", 0) >= 2 and all(
            "token_type_ids" in inspect.signature(model.forward).parameters for model in classes.values()
        )
        inputs = ["input_ids", "token_type_ids", "attention_mask"] if has_types else ["input_ids", "attention_mask"]
        tokenizer = load_tokenizer(folder, inputs=inputs)
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer in {folder} is written in Python; expected a fast one, with a tokenizer.json"
            )
        if tokenizer.pad_token_id is None:  # GPT's kind: padding is masked, and any token will do
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise InputError(
                f"the tokenizer in {folder} has neither a padding token nor one for the end; expected one of them"
            )
        tokenizer.padding_side = "right"
        return cls(
            folder=folder,
            kind=kind,
            positions=ModelShape.of(config).positions,
            pad_id=int(tokenizer.pad_token_id),
            token_types=has_types,
            tokenizer=tokenizer,
            tokenizer_as_loaded=hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        )

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 (hex) of what the tokenizer does to a text, whatever it was last told to cut and to pad."""
        return tokenizer_digest(self.tokenizer)

    def save_tokenizer(self, folder: Path) -> None:
        """Its files, which are the same before it was used and after."""
        self.tokenizer.save_pretrained(folder)
        _at_rest(self.tokenizer).save(str(folder / "tokenizer.json"))

    def fitting(self, training: TaskTraining, name: str, message: Callable[[str], None]) -> TaskTraining:
        """The training of the task `name` with inputs that the model has positions for; `message` is told where they are cut."""
        if self.positions is None or self.positions >= training.max_tokens:
            return training
        message(
            f"{name}: inputs are cut to {self.positions} tokens, as the model has no more positions (max_tokens is {training.max_tokens})"
        )
        return replace(training, max_tokens=self.positions)

    def with_head(
        self, head: Heads, labels: tuple[str, ...] | None, *, seed: int, attention: str | None
    ) -> PreTrainedModel:
        """The model in float32 on the CPU, in training mode, with a new head drawn from `seed`; `labels` None: a score.

        A head for as many labels that is in the folder is kept. Raises `InputError` for weights that lack a part of the model itself.
        """
        set_seed(seed)
        settings: dict[str, Any] = {}
        if head == "classification":
            names = labels or ("score",)
            settings = {
                "num_labels": len(names),
                "id2label": dict(enumerate(names)),
                "label2id": {name: number for number, name in enumerate(names)},
                "problem_type": "regression" if labels is None else "single_label_classification",
                "pad_token_id": self.pad_id,  # a causal model classifies by the last token that is not padding
            }
        model, missing, mismatched = from_files(
            _CLASSES[head],
            _IN_WORDS[head],
            self.folder,
            attn_implementation=attention,
            dtype=torch.float32,
            **settings,
        )
        base = f"{model.base_model_prefix}."
        refuse_unfit(self.folder, [entry for entry in mismatched if entry[0].startswith(base)])
        absent = [name for name in missing if name.startswith(base) and f".{_POOLER}." not in name]
        if absent:
            raise InputError(
                f"the weights in {self.folder} lack {len(absent)} tensors of {type(model).__name__} ({absent[0]}, ...); "
                "expected a whole model"
            )
        model.train()
        return model


def load_task_model(
    folder: Path,
    head: Heads,
    labels: tuple[str, ...] | None,
    *,
    attention: str,
    dtype: torch.dtype,
    device: str,
    command: str,
) -> PreTrainedModel:
    """A fine-tuned model with its head, in eval mode; `labels` are the classes that it is to tell apart, None: a score, or answers.

    Raises `InputError`, naming the `command` that makes it anew, for one that is not whole or was fine-tuned on other classes.
    """
    model, missing, mismatched = from_files(
        _CLASSES[head], _IN_WORDS[head], folder, attn_implementation=attention, dtype=dtype
    )
    refuse_unfit(folder, mismatched)
    if missing:
        raise InputError(
            f"the weights in {folder} lack {len(missing)} tensors of {type(model).__name__} ({missing[0]}, ...); expected a "
            f"fine-tuned {_IN_WORDS[head]}; run: {command}"
        )
    found = tuple((model.config.id2label or {}).values())
    if head == "classification" and found != (labels or ("score",)):
        raise InputError(
            f"the model in {folder} was fine-tuned to tell {', '.join(found)}; expected {', '.join(labels or ('score',))}; run: {command}"
        )
    torch.nn.Module.to(model, device)  # transformers hides the signature of model.to
    model.train(False)
    return model


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what a fast tokenizer does to a text, whatever it was last told to cut and to pad."""
    return hashlib.sha256(_at_rest(tokenizer).to_str().encode()).hexdigest()


def _at_rest(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
