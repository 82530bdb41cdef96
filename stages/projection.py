"""The student's projection onto the vocabulary, a chunk of rows at a time, forward and backward.

(rows, V) logits are the largest thing that a language model computes. Here they exist for one chunk, in one buffer, where they are
turned into their own gradients before the next chunk takes their place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.heads import filled

_CPU_CHUNK_BYTES, _GPU_CHUNK_BYTES = 64 << 20, 128 << 20
"""Of the logits that exist at a time."""
_CPU_LEAST_ROWS, _GPU_LEAST_ROWS = 256, 1024
"""Per chunk, however long the vocabulary: each adds once to the (V, H) gradient of the projection, which fewer rows would make the
main work."""
_CPU_BLOCK_BYTES = 4 << 20
"""Of the logits that a CPU turns into gradients at a time: they stay in its caches meanwhile. A GPU takes a whole chunk."""
_MULTIPLE = 64
"""Rows come in multiples: see `filled`."""


def product_dtype(features: Tensor) -> torch.dtype:
    """What matrix products with these features are made in: autocast's dtype, else their own."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype


def slices(rows: int, step: int) -> Iterator[slice]:
    """Slices of `step` rows that cover `rows` rows; the last may be shorter."""
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class ChunkedProjection:
    """Logits z = x W^T + b of features x (rows, H), weight W (V, H) and bias b (V,), and the gradients that come back through it.

    Products are made in the dtype of autocast, else in that of the features; all else in float32 or better. `keeps_dtype` leaves
    logits and their gradients in the dtype of the products, for a kernel that widens them as it reads. Gradients are made where
    `wants_gradients` says so, and only of what requires them.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        chunk_rows: int | None,
        *,
        wants_gradients: bool,
        keeps_dtype: bool = False,
    ) -> None:
        device, dtype = features.device, product_dtype(features)
        self.wide = torch.promote_types(dtype, torch.float32)
        """Of all sums."""
        self._of_logits = dtype if keeps_dtype else self.wide
        self._rows, row_bytes = len(features), self._of_logits.itemsize * len(weight)
        on_cpu = device.type == "cpu"
        chunk_bytes, least = (_CPU_CHUNK_BYTES, _CPU_LEAST_ROWS) if on_cpu else (_GPU_CHUNK_BYTES, _GPU_LEAST_ROWS)
        usual = max(least, chunk_bytes // row_bytes)
        self._chunk_rows = chunk_rows or usual // _MULTIPLE * _MULTIPLE
        self.block_rows = max(1, _CPU_BLOCK_BYTES // row_bytes) if on_cpu else self._chunk_rows
        """Rows of logits that are to be worked on at a time."""
        self._x, self._weight = filled(features, _MULTIPLE).to(dtype), weight.to(dtype)
        self._bias = None if bias is None else bias.to(dtype)
        self._logits = self._buffer()
        self._second: Tensor | None = None

        def made(like: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
            wanted = wants_gradients and like is not None and like.requires_grad
            return torch.zeros_like(like, dtype=dtype) if wanted and like is not None else None

        self._of_features, self._of_weight, self._of_bias = (
            made(features),
            made(weight, self.wide),
            made(bias, self.wide),
        )
        self._dtypes = [None if like is None else like.dtype for like in (features, weight, bias)]

    def teacher_buffer(self) -> Tensor:
        """Another buffer as large as that of the logits, for those of the teacher."""
        if self._second is None:
            self._second = self._buffer()
        return self._second

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each chunk and their logits, in a buffer that is there to be overwritten with the loss's gradients."""
        for chunk in slices(self._rows, self._chunk_rows):
            x = self._of_chunk(chunk)
            logits = self._logits[: len(x)]
            if self._x.dtype != self._of_logits:
                logits.copy_(F.linear(x, self._weight, self._bias))
            elif self._bias is None:
                torch.mm(x, self._weight.T, out=logits)
            else:
                torch.addmm(self._bias, x, self._weight.T, out=logits)
            real = chunk.stop - chunk.start
            logits[real:].zero_()  # rows that fill the chunk up have no gradient
            yield chunk, logits[:real]

    def add_bias_gradient(self, block: Tensor) -> None:
        """Add that of some rows of gradients, while they are in the processor's caches."""
        if self._of_bias is not None:
            self._of_bias.add_(block.sum(0, dtype=self.wide))

    def add_gradients(self, chunk: slice) -> None:
        """Those of features and weight, from the buffer of the chunk."""
        x = self._of_chunk(chunk)
        gradient = self._logits[: len(x)].to(x.dtype)
        if self._of_features is not None:
            self._of_features[chunk] = torch.mm(gradient, self._weight)[: chunk.stop - chunk.start]
        if self._of_weight is None:
            return
        if x.dtype == self.wide:
            self._of_weight.addmm_(gradient.T, x)
        elif x.is_cuda:  # float32 from the first row to the last: sums over many would overflow float16
            torch.addmm(self._of_weight, gradient.T, x, out_dtype=self.wide, out=self._of_weight)
        else:
            self._of_weight.add_(torch.mm(gradient.T, x))

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of features (rows, H), weight (V, H) and bias (V,), each in the dtype of its tensor; None for what requires none."""
        made = (self._of_features, self._of_weight, self._of_bias)
        return tuple(
            None if gradient is None else gradient.to(dtype) for gradient, dtype in zip(made, self._dtypes, strict=True)
        )

    def _buffer(self) -> Tensor:
        return torch.empty(
            min(self._chunk_rows, len(self._x)), len(self._weight), dtype=self._of_logits, device=self._x.device
        )

    def _of_chunk(self, chunk: slice) -> Tensor:
        return self._x[chunk.start : chunk.start + self._chunk_rows]
