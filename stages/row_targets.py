"""From the teacher's hidden states to what is kept of each row of logits, without ever holding many rows of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from stages.draws import draw_ids
from stages.heads import Head
from stages.quantise import encode_logits
from stages.target_selection import Scratch, count_likely, statistics, top_k
from storage import Layout

_LOGITS_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29}
"""Logits that are computed at once: a CPU reads the projection's weight anew for each chunk, a GPU wants work enough for all
its cores."""
_CACHE_BYTES = 1 << 23
"""Logits that a processor's caches hold while they are gone over several times."""


class RowTargets:
    """A head, ready to say what is kept of the logits of each row. To be used by one thread."""

    def __init__(self, head: Head, temperatures: tuple[float, ...], *, compiled: bool = False) -> None:
        self._head = head
        self._temperatures = temperatures
        self._device = head.projection[0].device
        # On a GPU each pass over the vocabulary is a trip to its memory: fused there are two. A CPU has them in its caches.
        fused = compiled and self._device.type == "cuda"
        self._statistics = torch.compile(statistics, dynamic=True) if fused else statistics
        row_bytes = 4 * head.vocabulary_size
        on_cpu = self._device.type == "cpu"
        self._chunk_rows = max(1, _LOGITS_BYTES["cpu" if on_cpu else "cuda"] // row_bytes)
        self._part_rows = max(1, _CACHE_BYTES // row_bytes) if on_cpu else self._chunk_rows

    def logits(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits f4 (r, V) of hidden states f4 (rows, H), a chunk at a time: each is gone when the next one comes.

        Of no rows there is one chunk, which is empty.
        """
        features = self._head.features(hidden)
        for start in range(0, max(1, len(hidden)), self._chunk_rows):
            chunk = slice(start, min(start + self._chunk_rows, len(hidden)))
            out = None if self._buffer is None else self._buffer[: chunk.stop - start]
            yield chunk, self._head.project(features[chunk], out)

    def of(self, hidden: Tensor, uniform: Tensor | None, layout: Layout) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """What the layout keeps of the rows with these hidden states f4 (rows, H), by name, part by part.

        `stat`, and as the layout has it `top_logits`, `top_ids`, `top_gap`, `top_count`, `drawn`. `uniform`
        f8 (rows, draws) is for the draws. Ids are i4: torch copies no unsigned ones.
        """
        for chunk, logits in self.logits(hidden):
            for start in range(chunk.start, max(chunk.start + 1, chunk.stop), self._part_rows):
                part = slice(start, min(start + self._part_rows, chunk.stop))
                here = logits[part.start - chunk.start : part.stop - chunk.start]
                yield part, self._kept(here, None if uniform is None else uniform[part], layout)

    def _kept(self, logits: Tensor, uniform: Tensor | None, layout: Layout) -> dict[str, Tensor]:
        scratch = None if self._scratch is None else self._scratch.of_rows(len(logits))
        stat = self._statistics(logits, self._temperatures, scratch)
        kept = {"stat": stat}
        excluded = None
        if layout.top_k:
            values, ids = top_k(logits, layout.top_k)
            kept.update(top_logits=values, top_ids=ids.int(), **encode_logits(layout, values))
            excluded = ids
            if layout.selection == "threshold":
                temperature = layout.threshold_temperature
                logsumexp = stat[:, 1 + 2 * self._temperatures.index(temperature)]
                count = count_likely(values, logsumexp, temperature, layout.threshold)
                kept["top_count"] = count.to(torch.uint8)
                inside = torch.arange(layout.top_k, device=count.device) < count[:, None]
                excluded = torch.where(inside, ids, ids[:, :1])
        if uniform is not None:
            tail = excluded if layout.draw_from == "tail" else None
            kept["drawn"] = draw_ids(logits, uniform, layout.draw_temperature, tail, scratch).int()
        return kept

    @cached_property
    def _scratch(self) -> Scratch | None:
        """None on a GPU, whose memory is not mapped anew."""
        if self._device.type != "cpu":
            return None
        return Scratch.of(self._part_rows, self._head.vocabulary_size, self._device)

    @cached_property
    def _buffer(self) -> Tensor | None:
        """For the logits of a chunk, for the same reason."""
        if self._device.type != "cpu":
            return None
        return torch.empty(self._chunk_rows, self._head.vocabulary_size)
