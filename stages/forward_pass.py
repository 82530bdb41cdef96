"""A language model's forward pass without its head, and on which devices it begins and ends."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def encoder_hidden(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Output of the last block, float (batch, tokens, H): what the LM head reads.

    The base model is called alone, so that the head can be applied to chosen positions only; that is exact.
    """
    return encoder_states(model, input_ids, attention_mask)[0]


def encoder_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, layers: Sequence[int] = ()
) -> tuple[Tensor, dict[int, Tensor]]:
    """What the LM head reads, and the state of each of `layers` (FORMAT.md, section 3), float (batch, tokens, H).

    0 is what the first block reads, n what the n-th block writes; for the last block that is what the head reads, after
    the final norm where the base model has one. Sequences are padded on the right; where none is, `attention_mask` may be
    None. Everything is on `head_device`.
    """
    # All of them: transformers takes a list of layers too, but before 5.23 it counts from the first block there.
    settings: dict[str, Any] = {"output_hidden_states": True} if layers else {}
    if keeps_keys_and_values(type(model.base_model).forward):
        settings["use_cache"] = False
    output = model.base_model(input_ids=input_ids, attention_mask=attention_mask, **settings)
    device = head_device(model)
    return output.last_hidden_state.to(device), {layer: output.hidden_states[layer].to(device) for layer in layers}


@cache
def keeps_keys_and_values(forward: Callable[..., Any]) -> bool:
    """Whether a model keeps keys and values for generation unless it is told not to."""
    return "use_cache" in inspect.signature(forward).parameters


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model's inputs belong; for one that is spread over devices, where its embeddings are computed."""
    return _device_of(model.get_input_embeddings())


def head_device(model: PreTrainedModel) -> torch.device:
    """Where a model's logits are computed."""
    return _device_of(model.get_output_embeddings())  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def _device_of(module: Any) -> torch.device:
    # Weights that accelerate keeps in main memory or on disk are moved for each use: its hook says where to.
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)
