"""Student models: their shape, and their initial weights from a teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DistilBertConfig, DistilBertForMaskedLM, set_seed

from stages import bilstm
from stages.config import ConfigError, StudentConfig
from stages.config.base import refuse, require
from stages.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
"""Modules of a BERT block and where they go in a DistilBERT block."""

INPUTS = ["input_ids", "attention_mask"]
"""What a student's tokenizer prepares: a BERT tokenizer would add token types, which DistilBERT refuses."""

_HEAD = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
}


def spread_layers(teacher_layers: int, layers: int) -> tuple[int, ...]:
    """Teacher blocks for `layers` student blocks, first and last among them: 12 -> 6 gives DistilBERT's 0 2 4 7 9 11."""
    return tuple(int(i) for i in np.linspace(0, teacher_layers - 1, layers).round())


def build_student(student: StudentConfig, name: str, teacher_config: Mapping[str, Any]) -> PreTrainedModel:
    """A DistilBERT or BiLSTM of the student's shape with random weights (seeded), for a teacher with this configuration.

    Raises `ConfigError` where the shape is not possible, `InputError` for a teacher of another family.
    """
    if student.architecture == "bilstm":
        set_seed(student.seed)
        lstm = bilstm.build(student, name, teacher_config, "masked")
        lstm.train(False)
        return lstm
    if teacher_config["model_type"] != "bert":
        raise InputError(
            f"a distilbert student (students.{name}) needs a teacher of type bert; the teacher is of type {teacher_config['model_type']}"
        )
    width = student.hidden_size or teacher_config["hidden_size"]
    heads = student.attention_heads or teacher_config["num_attention_heads"]
    require(width % heads == 0, f"students.{name}.hidden_size", width, f"a multiple of the attention heads ({heads})")
    config = DistilBertConfig(
        vocab_size=teacher_config["vocab_size"],
        max_position_embeddings=teacher_config["max_position_embeddings"],
        dim=width,
        n_layers=student.layers,
        n_heads=heads,
        hidden_dim=student.feed_forward_size or teacher_config["intermediate_size"],
        dropout=student.dropout,
        attention_dropout=student.dropout,
        activation=teacher_config["hidden_act"],
        pad_token_id=teacher_config["pad_token_id"],
        sinusoidal_pos_embds=False,
    )
    set_seed(student.seed)
    model: PreTrainedModel = DistilBertForMaskedLM(config)
    model.train(False)
    return model


def layer_map(student: StudentConfig, name: str, teacher_layers: int) -> tuple[int, ...]:
    """The teacher block copied into each student block. Raises `ConfigError` for blocks the teacher does not have."""
    if student.layers > teacher_layers:
        raise refuse(
            f"students.{name}.layers",
            student.layers,
            f"at most the teacher's {teacher_layers} blocks, or initialise: random",
        )
    chosen = student.layer_map or spread_layers(teacher_layers, student.layers)
    if max(chosen) >= teacher_layers:
        raise ConfigError(
            f"students.{name}.layer_map is {list(chosen)}; allowed: blocks 0 to {teacher_layers - 1}, as the teacher has {teacher_layers}"
        )
    return chosen


@torch.no_grad()
def copy_teacher(student: PreTrainedModel, teacher: PreTrainedModel, blocks: tuple[int, ...]) -> None:
    """Copy embeddings, the chosen blocks and the whole head of a BERT into a DistilBERT.

    BERT adds `token_type_embeddings[0]` to every token of single-segment text and DistilBERT has no such table, so it is
    folded into the position table: a copy of all blocks then reproduces the teacher. (The original recipe drops it.)
    A BiLSTM takes the embeddings and the head alone.
    """
    if student.config.model_type == bilstm.KIND:
        bilstm.copy(student, teacher)
        return
    source: dict[str, Tensor] = teacher.state_dict()
    embeddings = "bert.embeddings"
    target = {
        "distilbert.embeddings.word_embeddings.weight": source[f"{embeddings}.word_embeddings.weight"],
        "distilbert.embeddings.position_embeddings.weight": source[f"{embeddings}.position_embeddings.weight"]
        + source[f"{embeddings}.token_type_embeddings.weight"][0],
        "vocab_projector.weight": source["cls.predictions.decoder.weight"],
        "vocab_projector.bias": source["cls.predictions.decoder.bias"],
    }
    modules = [(f"{embeddings}.LayerNorm", "distilbert.embeddings.LayerNorm"), *_HEAD.items()]
    for to_block, from_block in enumerate(blocks):
        modules += [
            (f"bert.encoder.layer.{from_block}.{theirs}", f"distilbert.transformer.layer.{to_block}.{ours}")
            for theirs, ours in _BLOCK.items()
        ]
    for theirs, ours in modules:
        for part in ("weight", "bias"):
            target[f"{ours}.{part}"] = source[f"{theirs}.{part}"]
    student.load_state_dict(target, strict=True)
