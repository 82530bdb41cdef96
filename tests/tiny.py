"""A project so small that every stage runs in seconds: generated text, a teacher of 2 x 32, sequences of 16 tokens."""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

import yaml

from stages.config.base import merged

ROOT = Path(__file__).parents[1]

PHRASES = (
    ("the teacher", "a student", "the old reader", "one small model", "every writer", "the quiet miller"),
    ("reads", "stores", "copies", "forgets", "compares", "carries", "finds", "explains"),
    ("a shard", "the hidden state", "its own mask", "some warm bread", "the river", "a long letter"),
    ("in the morning", "without a sound", "before the next epoch", "near the mill", "once more"),
)
"""Who does what to whom, and when: a sentence takes one of each."""

PARAMS: dict[str, Any] = {
    "corpus": {
        "source": "files",
        "validation_fraction": 0.1,
        "test_fraction": 0.1,
        "seed": 0,
        "empty_documents": "refuse",
        "max_documents": None,
        "files": {"paths": ["text"], "document": "line"},
    },
    "tokenize": {
        "tokenizer": "train",
        "sequence_tokens": 16,
        "min_sequence_tokens": 4,
        "seed": 0,
        "train": {"vocabulary_size": 120, "lowercase": True, "min_frequency": 1},
    },
    "masking": {
        "probability": 0.3,
        "evaluation_probability": 0.15,
        "mask": 0.8,
        "random": 0.1,
        "smoothing": 0.7,
        "variants": 1,
        "seed": 0,
    },
    "teacher": {
        "source": "train",
        "train": {
            "layers": 2,
            "hidden_size": 32,
            "attention_heads": 2,
            "feed_forward_size": 64,
            "max_positions": 16,
            "dropout": 0.0,
            "learning_rate": 0.003,
            "warmup_steps": 2,
            "steps": 8,
            "float32_steps": 8,
            "batch_size": 16,
            "weight_decay": 0.01,
            "precision": "float32",
            "seed": 0,
        },
    },
    "cache": {
        "preset": "exact",
        "hidden": None,
        "hidden_layers": None,
        "attention_vectors": None,
        "attention_layers": None,
        "attention_coding": None,
        "hidden_group": None,
        "logits": None,
        "grid_step": None,
        "selection": None,
        "top_k": 16,
        "threshold": None,
        "threshold_temperature": None,
        "draws": None,
        "draw_from": None,
        "draw_temperature": None,
        "positions": "all",
        "position_fraction": None,
        "temperatures": [1.0, 2.0],
        "shard_tokens": 256,
        "sequences": {"train": 96, "validation": 8, "test": 8},
        "precision": "float32",
        "attention": "sdpa",
        "batch_tokens": 256,
    },
    "students": {
        "half": {
            "architecture": "distilbert",
            "initialise": "teacher",
            "layers": 1,
            "layer_map": [0],
            "dropout": 0.0,
            "seed": 0,
        }
    },
    "train": {
        "student": "half",
        "weights": {"kd": 5.0, "mlm": 2.0, "cos": 1.0},
        "temperature": 2.0,
        "kd_source": "hidden",
        "tail": "rest",
        "steps": 8,
        "epochs": None,
        "batch_size": 8,
        "micro_batch_size": 8,
        "learning_rate": 0.001,
        "warmup_steps": 2,
        "weight_decay": 0.01,
        "adam_betas": [0.9, 0.98],
        "adam_epsilon": 1.0e-6,
        "max_grad_norm": 1.0,
        "precision": "float32",
        "freeze_position_embeddings": False,
        "seed": 0,
        "checkpoint_steps": 4,
        "log_steps": 2,
    },
    "evaluate": {"split": "test", "batch_size": 8},
    "compare": {
        "seeds": [0],
        "runs": {"through the head": {}, "MLM only": {"weights": {"kd": 0.0, "cos": 0.0}}},
    },
    "machine": {"device": "cpu", "threads": 1},
}


def tiny_params(**overrides: Any) -> dict[str, Any]:
    """The parameters, with nested mappings of `overrides` merged in: `tiny_params(train={"steps": 2})`."""
    return merged(copy.deepcopy(PARAMS), overrides)


def tiny_text(lines: int = 240, seed: int = 0) -> str:
    """Lines of a few simple sentences each, one document per line."""
    choose = random.Random(seed).choice
    sentences = (" ".join(map(choose, PHRASES)) + "." for _ in range(2 * lines))
    return "".join(f"{first} {second}\n" for first, second in zip(sentences, sentences, strict=True))


def write_project(folder: Path, **overrides: Any) -> Path:
    """A project folder: text/, params.yaml, and the repository's own dvc.yaml, .dvcignore and .gitignore."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    (folder / "text" / "stories.txt").write_text(tiny_text(), encoding="utf-8")
    write_params(folder, **overrides)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def write_params(folder: Path, **overrides: Any) -> None:
    """(Re)write params.yaml alone."""
    text = yaml.safe_dump(tiny_params(**overrides), sort_keys=False)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
