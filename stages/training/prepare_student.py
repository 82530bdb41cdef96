"""What a training does to its student before the first step: what stays as it is, and how its encoder is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from stages.config import TrainConfig
from stages.config.base import refuse, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = {"position_embeddings", "wpe", "embed_positions"}
_TOKEN_TYPES = {"token_type_embeddings"}
"""What the tables are called in transformers' models."""


def prepare_student(student: PreTrainedModel, config: TrainConfig) -> None:
    """Freeze, compile and checkpoint as the parameters say. Raises `ConfigError` where the student has no such thing.

    Names and values of its weights stay what they are.
    """
    if config.freeze_position_embeddings:
        _freeze(student, _POSITIONS, "train.freeze_position_embeddings", "learned positions")
    if config.freeze_token_type_embeddings:
        _freeze(student, _TOKEN_TYPES, "train.freeze_token_type_embeddings", "token types")
    if config.gradient_checkpointing:
        require(
            student.supports_gradient_checkpointing,
            "train.gradient_checkpointing",
            True,
            f"false, as a {student.config.model_type} student cannot",
        )
        checkpoint_activations(student)
    if config.compile:
        # In place: as a wrapper around the module it would stand in the names of its weights. Sequences have many lengths.
        student.base_model.compile(dynamic=True)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have the blocks compute their activations once more in the backward pass instead of keeping them."""
    # The second name is that of older versions of transformers.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _freeze(student: PreTrainedModel, names: set[str], key: str, what: str) -> None:
    tables = [
        module
        for name, module in student.base_model.named_modules()
        if name.rpartition(".")[2] in names and isinstance(module, nn.Embedding)
    ]
    if not tables:
        raise refuse(key, True, f"false, as a {student.config.model_type} student has no table of {what}")
    for table in tables:
        table.requires_grad_(False)
