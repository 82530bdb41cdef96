"""Whether an exported or quantised model says what the model says."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.speed.sentences import Sentences

MAX_SENTENCES = 64
"""That are compared, evenly spaced: thousands of positions, and logits of one sentence at a time."""

Outputs = Callable[[Tensor, Tensor], "tuple[Tensor, Tensor] | list[Tensor]"]
"""Hidden states (batch, tokens, H) and logits (batch, tokens, V) of `input_ids` and `attention_mask`."""


@torch.inference_mode()
def compare_outputs(model: Outputs, other: Outputs, sentences: Sentences) -> dict[str, float]:
    """Of `other` to `model`, over all positions of some sentences.

    `hidden_max_difference` and `logits_max_difference` are the largest absolute differences of any value, `hidden_cosine` the mean
    cosine of the hidden states, `agreement` the share of positions with the same most likely id; `positions` says of how many.
    """
    step = -(-len(sentences) // MAX_SENTENCES)
    hidden_max = logits_max = cosine = agreeing = 0.0
    positions = 0
    for number in range(0, len(sentences), step):
        inputs = sentences.batch((number,))
        (hidden, logits), (other_hidden, other_logits) = model(*inputs), other(*inputs)
        hidden_max = max(hidden_max, (hidden - other_hidden).abs().max().item())
        logits_max = max(logits_max, (logits - other_logits).abs().max().item())
        cosine += F.cosine_similarity(hidden, other_hidden, dim=-1).sum().item()
        agreeing += (logits.argmax(-1) == other_logits.argmax(-1)).sum().item()
        positions += inputs[0].numel()
    return {
        "hidden_max_difference": float(f"{hidden_max:.4g}"),
        "logits_max_difference": float(f"{logits_max:.4g}"),
        "hidden_cosine": round(cosine / positions, 6),
        "agreement": round(agreeing / positions, 5),
        "positions": positions,
    }
