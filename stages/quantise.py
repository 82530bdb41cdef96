"""The codecs of storage on tensors, so that a GPU sends coded bytes over the bus and the processor has only to compress them.

Bit for bit what `storage.codecs` encodes on the same values; FORMAT.md, section 4, says what and why.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from storage import Layout
from storage.codecs import GAP_MAX, INT8_MAX

_CODED_AS: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("<u2")}
"""For codings that torch and numpy hold in other types of the same size."""


def encode_hidden(layout: Layout, states: Tensor) -> dict[str, Tensor]:
    """The stored arrays (`hidden`, perhaps `hidden_scale`) of hidden states (R, L, H) in any floating-point type."""
    match layout.hidden:
        case "int8":
            return _int8_groups(states.float(), layout.hidden_group)
        case "bfloat16":
            return {"hidden": states.float().bfloat16().view(torch.int16)}
        case "float16":
            return {"hidden": states.half()}
        case _:
            return {"hidden": states.float()}


def encode_logits(layout: Layout, logits: Tensor) -> dict[str, Tensor]:
    """`top_gap` u1 (R, k) of logits f4 (R, k) that descend along each row, where the layout has them on a grid.

    Empty for other codings, and where rows differ in length: those are coded once they are cut.
    """
    if layout.logits != "grid" or layout.selection == "threshold":
        return {}
    z = logits.double()
    reach = GAP_MAX * torch.arange(z.shape[-1], device=z.device)
    steps = torch.minimum(((z[:, :1] - z) / layout.grid_step).round(), reach.double()).long()
    reached = (steps - reach).cummin(-1).values + reach
    return {"top_gap": reached.diff(dim=-1, prepend=torch.zeros_like(reached[:, :1])).to(torch.uint8)}


def as_stored(layout: Layout, name: str, array: NDArray[Any]) -> NDArray[Any]:
    """An array that `encode_hidden` or `encode_logits` gave, in the type that storage has it in."""
    return array.view(_CODED_AS[layout.hidden]) if name == "hidden" and layout.hidden in _CODED_AS else array


def _int8_groups(values: Tensor, group: int) -> dict[str, Tensor]:
    width = values.shape[-1]
    groups = -(-width // group)
    grouped = F.pad(values, (0, groups * group - width)).reshape(*values.shape[:-1], groups, group)
    largest = grouped.abs().amax(-1)
    scale = (largest / INT8_MAX).half()
    # float16 times 127 is exact in float32, so this finds exactly the scales that were rounded down; of a positive
    # float16, the next one has the next bits.
    too_small = scale.float() * INT8_MAX < largest
    scale = (scale.view(torch.int16) + too_small.to(torch.int16)).view(torch.float16)
    divisor = torch.where(scale == 0, 1.0, scale.float())
    quantised = (grouped / divisor[..., None]).round().to(torch.int8).flatten(-2)[..., :width]
    return {"hidden": quantised, "hidden_scale": scale}
