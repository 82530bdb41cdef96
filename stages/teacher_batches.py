"""A teacher's way through a shard: sequences of similar length together, and results gathered in the order of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Sequences that the teacher sees together."""

    sequences: npt.NDArray[np.int64]
    """Local indices, the longest first."""
    lengths: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    """Index within the shard of every token, one sequence after the other."""
    places: npt.NDArray[np.int64]
    """Where each of these tokens stands in the padded batch, flattened."""

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of the padded batch."""
        return len(self.lengths), int(self.lengths[0])

    @property
    def is_padded(self) -> bool:
        return int(self.lengths[-1]) < int(self.lengths[0])


def batches(offsets: npt.NDArray[np.integer[Any]], batch_tokens: int) -> Iterator[Batch]:
    """The sequences between `offsets` (S + 1,), the longest first, in batches of at most `batch_tokens` when padded."""
    starts = offsets.astype(np.int64)
    lengths = np.diff(starts)
    order = np.argsort(-lengths, kind="stable")
    begin = 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        sequences = order[begin : begin + max(1, batch_tokens // longest)]
        begin += len(sequences)
        position = np.arange(longest)
        real = position < lengths[sequences, None]
        yield Batch(
            sequences=sequences,
            lengths=lengths[sequences],
            tokens=(starts[sequences, None] + position)[real],
            places=np.flatnonzero(real),
        )


def sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device. A GPU fetches it from pinned memory in its turn: nobody waits."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def padded(
    input_ids: npt.NDArray[np.integer[Any]], batch: Batch, *, pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Ids and attention mask of a batch, i8 (sequences, tokens); no mask where there is no padding, as attention is fastest so."""
    return filled(input_ids, batch, pad_id, device), real_tokens(batch, device)


def filled(values: npt.NDArray[np.integer[Any]], batch: Batch, padding: int, device: torch.device) -> Tensor:
    """One value for each token, of all tokens of the shard (N,), as i8 (sequences, tokens)."""
    array = np.full(batch.shape, padding, np.int64)
    array.flat[batch.places] = values[batch.tokens]
    return sent(array, device)


def real_tokens(batch: Batch, device: torch.device) -> Tensor | None:
    """Attention mask i8 (sequences, tokens); None without padding."""
    if not batch.is_padded:
        return None
    real = np.zeros(batch.shape, np.int64)
    real.flat[batch.places] = 1
    return sent(real, device)


class Columns:
    """Results of all rows by name, on the teacher's device, filled batch by batch."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._columns: dict[str, Tensor] = {}

    def put(self, rows: Tensor, found: dict[str, Tensor]) -> None:
        """Results (r, ...) of the given rows, i8 (r,)."""
        for name, part in found.items():
            if name not in self._columns:
                # A row that nobody fills must not pass for one: NaN is refused before a shard is stored.
                empty = float("nan") if part.is_floating_point() else 0
                self._columns[name] = part.new_full((self._rows, *part.shape[1:]), empty)
            self._columns[name].index_copy_(0, rows, part)

    def in_memory(self) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        """The columns in the processor's memory, and what to wait for before they are read."""
        device = next(iter(self._columns.values())).device
        if device.type == "cpu":
            return self._columns, None
        pinned = {
            name: torch.empty(column.shape, dtype=column.dtype, pin_memory=True).copy_(column, non_blocking=True)
            for name, column in self._columns.items()
        }
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        copied.record(torch.cuda.current_stream(device))
        return pinned, copied
