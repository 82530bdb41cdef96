"""A transformer's blocks, whatever its family calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from stages.errors import InputError
from stages.model_config import ModelShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks of a model's base, in order: the one `ModuleList` in it that has as many entries as the model has layers.

    Raises `InputError` where there is none, or where two of them might be meant.
    """
    kind, layers = model.config.model_type, ModelShape.of(model.config.to_dict()).layers
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    inside = {id(part) for module in lists for part in module.modules() if part is not module}
    found = [module for module in lists if len(module) == layers and id(module) not in inside]
    if len(found) != 1:
        raise InputError(
            f"the blocks of a model of type {kind!r} are not found: it has {len(found)} lists of {layers} modules; expected one, "
            "with a block for each layer (ALBERT, say, uses one block for all)"
        )
    return found[0]
