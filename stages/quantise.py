"""The codecs of storage on tensors, so that a GPU sends coded bytes over the bus and the processor has only to compress them.

Bit for bit what `storage.codecs` encodes on the same values; FORMAT.md, section 4, says what and why.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from storage import Layout, VectorName
from storage.codecs import GAP_MAX, INT8_MAX

_BFLOAT16_BITS = np.dtype("<u2")
"""torch has them as signed integers of the same size."""
_VECTORS: tuple[VectorName, ...] = get_args(VectorName)
CODED = frozenset({"top_gap", *_VECTORS, *(f"{name}_scale" for name in _VECTORS)})
"""Names of all arrays that are coded here."""


def encode_vectors(layout: Layout, name: VectorName, vectors: Tensor) -> dict[str, Tensor]:
    """The stored arrays (`<name>`, perhaps `<name>_scale`) of vectors (R, L, W) in any floating-point type."""
    match layout.coding(name):
        case "int8":
            quantised, scale = _int8_groups(vectors.float(), layout.hidden_group)
            return {name: quantised, f"{name}_scale": scale}
        case "bfloat16":
            return {name: vectors.float().bfloat16().view(torch.int16)}
        case "float16":
            return {name: vectors.half()}
        case _:
            return {name: vectors.float()}


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
    """An array that `encode_vectors` or `encode_logits` gave, in the type that storage has it in."""
    is_bfloat16 = name in _VECTORS and layout.coding(name) == "bfloat16"
    return array.view(_BFLOAT16_BITS) if is_bfloat16 else array


def _int8_groups(values: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """int8 and the float16 scales of float32 values, groups along the last axis."""
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
    return quantised, scale
