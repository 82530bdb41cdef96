"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108), of a BERT: cased, uncased or multilingual. Of a DistilBERT, a shorter one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DistilBertConfig, DistilBertForMaskedLM

from stages.config import StudentConfig
from stages.config.base import require
from stages.errors import InputError
from stages.figures import Objective
from stages.model_config import ModelShape
from stages.students import same

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

_HEAD = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
}


def build(
    student: StudentConfig, name: str, teacher_config: Mapping[str, Any], objective: Objective
) -> PreTrainedModel:
    """A DistilBERT of the student's shape with random weights. Raises as `stages.students.Architecture.build`."""
    kind = teacher_config["model_type"]
    if kind == "distilbert":
        return same.build(student, name, teacher_config, objective)
    if kind != "bert" or objective == "causal":
        found = f"is of type {kind}" if kind != "bert" else "is causal"
        raise InputError(
            f"a distilbert student (students.{name}) needs a masked teacher of type bert; the teacher {found}; "
            f"expected students.{name}.architecture: same, a shorter model of the teacher's own class"
        )
    shape = ModelShape.of(teacher_config)
    width = student.hidden_size or shape.hidden_size
    heads = student.attention_heads or teacher_config["num_attention_heads"]
    require(width % heads == 0, f"students.{name}.hidden_size", width, f"a multiple of the attention heads ({heads})")
    config = DistilBertConfig(
        vocab_size=shape.vocabulary_size,
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
    model: PreTrainedModel = DistilBertForMaskedLM(config)
    return model


def copy(student: PreTrainedModel, teacher: PreTrainedModel, blocks: tuple[int, ...]) -> None:
    """Copy embeddings, the chosen blocks and the whole head of a BERT into a DistilBERT.

    BERT adds `token_type_embeddings[0]` to every token of single-segment text and DistilBERT has no such table, so it is
    folded into the position table: a copy of all blocks then reproduces the teacher. (The original recipe drops it.)
    """
    if teacher.config.model_type == "distilbert":
        same.copy(student, teacher, blocks)
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
