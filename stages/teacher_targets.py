"""The teacher's pass over one shard: what it saw, and what it said, ready to be stored.

On a GPU the work of a whole shard is enqueued: results gather on the device in the order of the shard's rows, coded as they
will be stored, and cross over once; `Computed.targets` is where a writer waits. The only other wait is transformers' own, which
looks at the attention mask of a padded batch before it chooses a kernel; batches without padding have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.draws import ShardUniforms, count_draws
from stages.errors import Interrupted
from stages.forward_pass import head_device, input_device
from stages.heads import Head
from stages.masking import SeesTokens
from stages.quantise import CODED, as_stored, encode_vectors
from stages.row_targets import RowTargets
from stages.sequences import TokenStore
from stages.sharing import never
from stages.teacher_batches import Batch, Columns, batches, padded, sent
from stages.teacher_vectors import TeacherVectors
from storage import Layout, ShardId, ShardTargets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class SeenSequences:
    """The tokens of a shard before and after masking (FORMAT.md, section 3)."""

    offsets: npt.NDArray[np.uint32]  # (S + 1,)
    original_ids: npt.NDArray[np.integer[Any]]  # (N,)
    input_ids: npt.NDArray[np.integer[Any]]  # (N,)
    masked: npt.NDArray[np.uint8]  # (N,)
    start: int
    """Id of the first sequence."""
    uniforms: ShardUniforms
    """For what is chosen at random beside the masks."""

    def rows(self, layout: Layout) -> npt.NDArray[np.uint32] | None:
        """Token index of each cached row, u4 (R,); None where every token has a row."""
        if layout.positions == "all":
            return None
        cached = self.masked == 1
        if layout.positions == "sampled":
            lengths = np.diff(self.offsets.astype(np.int64))
            uniform = [self.uniforms.positions(self.start + i, int(length)) for i, length in enumerate(lengths)]
            cached |= np.concatenate(uniform) < layout.position_fraction
        return np.flatnonzero(cached).astype(np.uint32)


def mask_shard(
    tokens: TokenStore, masker: SeesTokens, shard: ShardId, span: tuple[int, int], *, seed: int
) -> SeenSequences:
    """Read the shard's sequences (`span` is first id and count) and mask each one; `seed` is that of all other choices."""
    start, count = span
    offsets, original = tokens.split(shard.split).read(start, count)
    input_ids, masked = np.empty_like(original), np.empty(len(original), np.uint8)
    for i in range(count):
        part = slice(int(offsets[i]), int(offsets[i + 1]))
        input_ids[part], masked[part] = masker.mask(start + i, shard.variant, original[part])
    return SeenSequences(
        offsets=offsets.astype(np.uint32),
        original_ids=original,
        input_ids=input_ids,
        masked=masked,
        start=start,
        uniforms=ShardUniforms(seed, shard.split, shard.variant),
    )


@dataclass(frozen=True)
class Computed:
    """What the teacher said about a shard: on its way from the device, perhaps."""

    seen: SeenSequences
    layout: Layout
    row_token: npt.NDArray[np.uint32] | None
    columns: dict[str, Tensor]
    """(rows, ...) by name, in the processor's memory; there once `copied` has happened."""
    copied: torch.cuda.Event | None = None

    def targets(self) -> ShardTargets:
        """The targets, ready to be checked and stored. Waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        arrays = {name: as_stored(self.layout, name, tensor.numpy()) for name, tensor in self.columns.items()}
        encoded = {name: array for name, array in arrays.items() if name in CODED}
        return ShardTargets(
            sequence_offsets=self.seen.offsets,
            original_ids=self.seen.original_ids,
            input_ids=self.seen.input_ids,
            masked=self.seen.masked,
            row_token=self.row_token,
            stat=arrays["stat"],
            hidden=None,
            attention={},
            encoded=encoded,
            **_kept_logits(arrays),
            **_kept_draws(arrays),
        )


class TargetsComputer:
    """A teacher, ready to turn masked sequences into `ShardTargets`. To be used by one thread."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        *,
        temperatures: tuple[float, ...],
        pad_id: int,
        batch_tokens: int,
        compiled: bool = False,
    ) -> None:
        self._teacher = teacher
        self._input_device, self._device = input_device(teacher), head_device(teacher)
        if self._device.type == "cuda" and teacher.dtype != torch.float32:
            # TF32 keeps all bits that bfloat16 states have, and a GPU's plain float32 takes longer than the whole encoder.
            torch.set_float32_matmul_precision("high")
        # The head works in float32 whatever the encoder's dtype, as it will when a student rebuilds the logits.
        head = Head.of(teacher).float()
        if compiled:
            teacher.base_model.compile(dynamic=True)  # batches differ in shape
        self._rows = RowTargets(head, temperatures, compiled=compiled)
        self._pad_id = pad_id
        self._batch_tokens = batch_tokens

    @torch.inference_mode()
    def compute(self, seen: SeenSequences, layout: Layout, should_stop: Callable[[], bool] = never) -> Computed:
        """All rows of one shard, in the order of its tokens, coded as they will be stored.

        Raises `Interrupted` where `should_stop`, asked before each batch, says so.
        """
        row_token = seen.rows(layout)
        of_token = np.arange(len(seen.original_ids)) if row_token is None else row_token.astype(np.int64)
        row_of_token = np.full(len(seen.original_ids), -1, np.int64)
        row_of_token[of_token] = np.arange(len(of_token))
        columns = Columns(len(of_token))
        with TeacherVectors(self._teacher, layout) as teacher:
            for batch in batches(seen.offsets, self._batch_tokens):
                if should_stop():
                    raise Interrupted("the shard in hand was dropped")
                kept = np.flatnonzero(row_of_token[batch.tokens] >= 0)
                rows = self._sent(row_of_token[batch.tokens[kept]])
                places = self._sent(batch.places[kept])
                last, vectors = teacher.of(*self._padded(seen.input_ids, batch))
                for name, of_layers in vectors.items():
                    states = torch.stack([state.flatten(0, 1)[places] for state in of_layers], 1)
                    columns.put(rows, encode_vectors(layout, name, states))
                drawn = self._uniforms(seen, batch, layout.draws)
                uniform = None if drawn is None else self._sent(drawn[kept])
                for part, found in self._rows.of(last.flatten(0, 1)[places].float(), uniform, layout):
                    columns.put(rows[part], found)
        return Computed(seen, layout, row_token, *columns.in_memory())

    def _padded(self, input_ids: npt.NDArray[np.integer[Any]], batch: Batch) -> tuple[Tensor, Tensor | None]:
        return padded(input_ids, batch, pad_id=self._pad_id, device=self._input_device)

    def _uniforms(self, seen: SeenSequences, batch: Batch, draws: int) -> npt.NDArray[np.float64] | None:
        """f8 (tokens of the batch, draws), in the order of its `tokens`; None without draws."""
        if not draws:
            return None
        return np.concatenate(
            [
                seen.uniforms.draws(seen.start + int(sequence), int(length), draws)
                for sequence, length in zip(batch.sequences, batch.lengths, strict=True)
            ]
        )

    def _sent(self, array: npt.NDArray[Any]) -> Tensor:
        return sent(array, self._device)


def _kept_logits(columns: dict[str, Array]) -> dict[str, Array | None]:
    """The fields of `ShardTargets` for the cached logits: flat where their number differs from row to row."""
    ids, logits, count = (columns.get(name) for name in ("top_ids", "top_logits", "top_count"))
    ids = None if ids is None else ids.view(np.uint32)
    if ids is not None and logits is not None and count is not None:
        inside = np.arange(ids.shape[1]) < count[:, None]
        ids, logits = ids[inside], logits[inside]
    return {"top_ids": ids, "top_logits": logits, "top_count": count}


def _kept_draws(columns: dict[str, Array]) -> dict[str, Array]:
    """The fields of `ShardTargets` for the draws; none where there are no draws."""
    if "drawn" not in columns:
        return {}
    return dict(
        zip(("draw_count", "draw_ids", "draw_weight"), count_draws(columns["drawn"].view(np.uint32)), strict=True)
    )
