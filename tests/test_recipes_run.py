"""Every recipe from text to an evaluated student, with small teachers of the same families in the place of its own.

All other values are the recipe's, but for sizes: sequences, shards, batches, steps.
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
from stages import cache_teacher, corpus, evaluate, finetune, init_student, teacher, tokenize_corpus, train_student
from stages.config import load_config
from stages.config.base import merged
from stages.context import Artefacts, Context
from tests.stages.tasks.files import write_glue, write_phrases
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


TRAINED = {
    "layers": 4,
    "hidden_size": 32,
    "feed_forward_size": 64,
    "max_positions": TOKENS,
    "steps": 4,
    "float32_steps": 4,
    "warmup_steps": 1,
    "batch_size": 8,
    "precision": "float32",
}
"""Of a teacher that is trained on the spot."""


UNCASED = partial(word_level, tiny_text(), lowercase=True)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What stands in for the teacher of a recipe, where that is loaded, and what its student must be."""

    student: str
    """`model_type`."""
    kind: str = "bert"
    tokenizer: Callable[[], Any] = UNCASED
    blocks: int = 12
    settings: dict[str, Any] = field(default_factory=dict)


BERT = Given(student="distilbert")
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
    "relations": Given(student="bert"),
    "ensemble": BERT,
    "teacher-assistant": Given(student="distilbert", kind="distilbert", blocks=2),
    "bilstm": Given(student="bilstm"),
}
ALIKE = {"distilbert-cased", "distilmbert"}
"""Of the same classes and values as `distilbert`: for a campaign."""
ELSEWHERE = {"default", "manifest-only", "ablation", "minilm", "sst2-small"}
"""Run under DVC, by tests/pipeline, and by hand: an encoder that comes in a package (docs/quality.md); the last also below."""
RUN = [
    pytest.param(name, marks=[pytest.mark.campaign] if name in ALIKE else [])
    for name in recipes()
    if name not in ELSEWHERE
]


def scaled_down(name: str) -> dict[str, Any]:
    """The recipe's parameters with local text and models, and small sizes."""
    values = merged(yaml.safe_load(recipes()[name].files["params.yaml"].read_text(encoding="utf-8")), SCALED_DOWN)
    if values["tokenize"]["tokenizer"] == "load":
        values["tokenize"]["load"] = {"path": "given"}
    else:
        values["tokenize"]["train"]["vocabulary_size"] = 256
    for section in (values["teacher"], *values.get("teachers", {}).values()):
        if section["source"] == "load":
            section["load"] = {"path": "given"}
        else:
            section["train"].update(TRAINED)
    train = values["train"]
    if train["steps"] is not None:
        train.update(steps=4, warmup_steps=1)
    if train["validation"]["steps"] is not None:
        train["validation"]["steps"] = 4
    return values


def give_teacher(folder: Path, given: Given) -> None:
    """A model of the family, and its tokenizer."""
    tokenizer = given.tokenizer()
    tokenizer.save_pretrained(folder)
    settings = {"max_position_embeddings": TOKENS, "initializer_range": 0.1, **given.settings}
    sizes = {"vocabulary": len(tokenizer), "hidden_size": WIDTH, "num_hidden_layers": given.blocks}
    tiny_model(given.kind, **sizes, **settings).save_pretrained(folder)


@pytest.mark.parametrize("name", RUN)
def test_a_recipe_goes_all_the_way_with_a_small_teacher_of_its_family(tmp_path, name):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "stories.txt").write_text(tiny_text(), encoding="utf-8")
    give_teacher(tmp_path / "given", GIVEN[name])
    values = scaled_down(name)
    config, context = load_config(values), Context(artefacts=Artefacts(project=tmp_path))
    for stage in (corpus, tokenize_corpus, teacher, cache_teacher):
        stage.run(config, context)
    for other in values.get("teachers", {}):
        for stage in (teacher, cache_teacher):
            stage.run(config.of_teacher(other), context.of_teacher(other))
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


def test_the_small_reproduction_scores_teacher_and_student_on_a_part_of_the_merged_files(tmp_path):
    values = yaml.safe_load(recipes()["sst2-small"].files["params.yaml"].read_text(encoding="utf-8"))
    small = {"max_tokens": TOKENS, "batch_size": 20}
    same = {section: SCALED_DOWN[section] for section in ("tokenize", "machine")}
    values = merged(values, {"finetune": {"training": small}, **same})
    config, context = load_config(values), Context(artefacts=Artefacts(project=tmp_path))
    give_teacher(context.artefacts.teacher, Given(student="distilbert", blocks=6))
    write_phrases(tmp_path / "data" / "glue" / "SST-2")
    write_glue(tmp_path / "data" / "glue" / "MRPC", "MRPC")
    init_student.run(config, context, "half-random")
    for model in ("teacher", "models/student-init/half-random"):
        finetune.run(config, context, model=model)
    summary = json.loads((context.artefacts.finetuning / "summary.json").read_text())
    assert summary["retention"]["student-init-half-random"].keys() == {"SST-2-merged", "all"}
    for model in summary["models"].values():
        task = model["tasks"]["SST-2-merged"]
        assert 75 <= task["examples"]["train"] <= 80
        assert task["zero_shot"]["MRPC"]["majority"] == {"f1": 0.0, "accuracy": 1.0}
