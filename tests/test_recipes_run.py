"""Every recipe whose models come from the hub, from text to an evaluated student: with small teachers of the same families in their place.

All other values are the recipe's own, but for sizes: sequences, shards, batches.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.init import recipes
from stages import cache_teacher, corpus, evaluate, init_student, teacher, tokenize_corpus, train_student
from stages.config import load_config
from stages.config.base import merged
from stages.context import Artefacts, Context
from tests.stages.tiny_models import tiny_model
from tests.stages.tiny_tokenizers import trained_byte_level, trained_roberta, word_level
from tests.tiny import tiny_text

WIDTH, TOKENS, SEQUENCES, BATCH = 48, 16, 24, 8
SCALED_DOWN = {
    "corpus": {
        "source": "files",
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "files": {"paths": ["text"], "document": "line"},
    },
    "tokenize": {"sequence_tokens": TOKENS, "min_sequence_tokens": 4},
    "cache": {
        "shard_tokens": 256,
        "sequences": {"train": SEQUENCES, "validation": 6, "test": 6},
        "precision": "float32",
        "batch_tokens": 256,
    },
    "train": {
        "batch_size": BATCH,
        "micro_batch_size": 4,
        "precision": "float32",
        "checkpoint_steps": 100,
        "log_steps": 1,
    },
    "machine": {"device": "cpu", "threads": 1},
}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What stands in for the teacher of a recipe, and what its student must be."""

    kind: str
    tokenizer: Callable[[], Any]
    student: str
    """`model_type`."""
    settings: dict[str, Any] = field(default_factory=dict)


BERT = Given(kind="bert", tokenizer=partial(word_level, tiny_text(), lowercase=True), student="distilbert")
ROBERTA = Given(
    kind="roberta",
    tokenizer=trained_roberta,
    student="roberta",
    settings={"max_position_embeddings": TOKENS + 2, "pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1},
)
GPT2 = Given(
    kind="gpt2",
    tokenizer=trained_byte_level,
    student="gpt2",
    settings={"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0},
)
GIVEN = {
    "distilbert": BERT,
    "distilbert-cased": BERT,
    "distilmbert": BERT,
    "distilroberta": ROBERTA,
    "distilgpt2": GPT2,
    "relations": Given(kind="bert", tokenizer=BERT.tokenizer, student="bert"),
}


def test_every_recipe_with_models_of_the_hub_is_run_here():
    assert {name for name in recipes() if "hub_id" in text_of(name)} == set(GIVEN)


def text_of(name: str) -> str:
    return recipes()[name].files["params.yaml"].read_text(encoding="utf-8")


def scaled_down(name: str) -> dict[str, Any]:
    """The recipe's parameters with local text and models, and small sizes."""
    values = merged(yaml.safe_load(text_of(name)), SCALED_DOWN)
    for section in ("tokenize", "teacher"):
        values[section]["load"] = {"path": "given"}
    train = values["train"]
    if train["steps"] is not None:
        train.update(steps=4, warmup_steps=1)
    if train["validation"]["steps"] is not None:
        train["validation"]["steps"] = 4
    return values


def project(folder: Path, name: str) -> tuple[Any, Context]:
    """Parameters and context of a project with text and a teacher of twelve blocks."""
    given = GIVEN[name]
    (folder / "text").mkdir()
    (folder / "text" / "stories.txt").write_text(tiny_text(), encoding="utf-8")
    tokenizer = given.tokenizer()
    tokenizer.save_pretrained(folder / "given")
    model = tiny_model(
        given.kind,
        vocabulary=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=12,
        **{"max_position_embeddings": TOKENS, "initializer_range": 0.1, **given.settings},
    )
    model.save_pretrained(folder / "given")
    return load_config(scaled_down(name)), Context(artefacts=Artefacts(project=folder))


ALIKE = {"distilbert-cased", "distilmbert"}
"""Of the same classes and values as `distilbert`: for a campaign."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.campaign] if n in ALIKE else []) for n in GIVEN])
def test_a_recipe_goes_all_the_way_with_a_small_teacher_of_its_family(tmp_path, name):
    config, context = project(tmp_path, name)
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        stage.run(config, context)
    init_student.run(config, context, config.train.student)
    train_student.run(config, context)
    evaluate.run(config, context)
    student = json.loads((context.artefacts.student / "config.json").read_text())
    assert student["model_type"] == GIVEN[name].student
    with (context.artefacts.runs / "train.csv").open(newline="") as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == (config.train.steps or config.train.epochs * SEQUENCES // BATCH)
    assert all(float(steps[-1][term]) > 0 for term in config.train.weights.used)
    figures = json.loads((context.artefacts.runs / "evaluation.json").read_text())
    assert figures["kl_all"] > 0
