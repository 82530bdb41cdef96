"""All vectors that a cache holds of its teacher, out of one forward pass: hidden states, queries, keys, values."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from stages.attention_vectors import AttentionTaps
from stages.forward_pass import encoder_states, head_device
from stages.model_config import ModelShape
from storage import Layout, VectorName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TeacherVectors:
    """Runs a teacher over padded batches for the vectors of a layout. A context manager: the teacher is tapped within it."""

    def __init__(self, teacher: PreTrainedModel, layout: Layout) -> None:
        self._teacher, self._layout = teacher, layout
        self._last_layer = ModelShape.of(teacher.config.to_dict()).layers
        self._taps = AttentionTaps(teacher, layout.attention_layers, layout.attention_vectors)

    def __enter__(self) -> Self:
        self._taps.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._taps.__exit__(kind, error, trace)

    def of(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, dict[VectorName, list[Tensor]]]:
        """What the LM head reads, and by name one tensor for each cached layer, (S, L, W): all on the head's device.

        `attention_mask` as in `stages.forward_pass.encoder_states`.
        """
        layout = self._layout
        below = [layer for layer in layout.hidden_layers if layer != self._last_layer]
        last, states = encoder_states(self._teacher, input_ids, attention_mask, below)
        found: dict[VectorName, list[Tensor]] = {}
        if layout.hidden != "none":
            found["hidden"] = [states.get(layer, last) for layer in layout.hidden_layers]
        device = head_device(self._teacher)
        for part in layout.attention_vectors:
            found[part] = [self._taps[part, block].to(device) for block in layout.attention_layers]
        return last, found
