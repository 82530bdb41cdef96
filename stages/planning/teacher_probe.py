"""What the teacher does with a sample, and what it takes: in stage one, in the loop of a training, and as a frozen head."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.config import Config
from stages.context import Context
from stages.forward_pass import encoder_hidden, head_device, input_device
from stages.heads import Head, row_chunks
from stages.model_config import ModelShape
from stages.planning import KEPT
from stages.planning.sizes import Coded, Held, encode_sample, widest
from stages.teacher_targets import SeenSequences, TargetsComputer
from storage import CacheDescription, ShardTargets, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD_ROWS = 2048
"""Rows that the head is timed on: many chunks of logits."""
HEAD_ROUNDS = 5
CHUNK_BYTES = 8 << 20
"""Of the logits that exist at a time, in float32 (`row_chunks`); a second chunk holds what is made of them."""


@dataclass(frozen=True, kw_only=True)
class StageOne:
    """A sample as stage one makes its targets, and how fast."""

    sample: Coded
    rates: Sequence[float]
    """Tokens per second of each piece: forward pass and selection, not the writing beside it."""

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True, kw_only=True)
class TeacherMemory:
    """Bytes that a teacher in the loop takes on the student's device."""

    weights: int
    activations: int
    """Peak beside the weights, of a micro-batch without gradients."""
    method: str
    """How `activations` came about."""
    head: int
    """Of the head alone, in float32, as `kd_source: hidden` keeps it."""

    def to_json(self, *, keeps_head: bool) -> dict[str, Any]:
        """As plain JSON; `saved` is what a training from a cache has to spare: where the head is kept, its logits are too."""
        kept = keeps_head * (self.head + 2 * CHUNK_BYTES)
        return {
            "weights": self.weights,
            "activations": self.activations,
            "method": self.method,
            "head_kept": keeps_head * self.head,
            "saved": self.weights + self.activations - kept,
        }


@dataclass(frozen=True, kw_only=True)
class Online:
    """What a teacher in the loop costs."""

    encoder_seconds_per_token: float
    head_seconds_per_row: float
    memory: TeacherMemory


class TeacherProbe:
    """Runs a teacher over pieces of the corpus."""

    def __init__(self, teacher: PreTrainedModel, head: Head, config: Config, context: Context, *, pad_id: int) -> None:
        self._teacher, self._context, self._pad_id = teacher, context, pad_id
        self._head = head.float()
        self._batch_tokens, self._micro_batch_size = config.cache.batch_tokens, config.train.micro_batch_size
        self._compiled = config.cache.compile
        # Where the teacher's results arrive, and whose clock therefore counts: it may be spread over several devices.
        self._device = head_device(teacher)
        self._clock = _clock_of(self._device)

    def begin(self, samples: Mapping[Split, Sequence[SeenSequences]]) -> None:
        """Announce what is to be run: all pieces once for the presets, those of the train split twice more, for the speed."""
        tokens = {split: sum(len(piece.original_ids) for piece in pieces) for split, pieces in samples.items()}
        warming_up = 2 * sum(len(piece.original_ids) for piece in self._to_warm_up(samples["train"]))
        self._context.progress.begin(
            "probe the teacher", sum(tokens.values()) + 2 * tokens["train"] + warming_up, "tokens"
        )

    def stage_one(self, description: CacheDescription, pieces: Sequence[SeenSequences]) -> StageOne:
        """The train split as configured, once it is warm: kernels are chosen, and all that is compiled has been."""
        layout, rates = description.splits["train"].layout, []

        def timed() -> Iterator[ShardTargets]:
            computer = self._computer(description, compiled=self._compiled)
            for piece in self._to_warm_up(pieces):
                computer.compute(piece, layout).targets()
                self._done(piece)
            for piece in pieces:
                started = self._clock()
                targets = computer.compute(piece, layout).targets()
                rates.append(len(piece.original_ids) / (self._clock() - started))
                self._done(piece)
                yield targets

        return StageOne(sample=encode_sample(timed(), description, layout), rates=rates)

    def hold(self, descriptions: Iterable[CacheDescription], split: Split, pieces: Sequence[SeenSequences]) -> Held:
        """What all these caches would keep of the pieces, in one pass."""
        description = widest(descriptions, split)
        layout = description.splits[split].layout

        def each() -> Iterator[ShardTargets]:
            computer = self._computer(description)
            for piece in pieces:
                yield computer.compute(piece, layout).targets()
                self._done(piece)

        return Held(description=description, coded=encode_sample(each(), description, layout))

    @torch.inference_mode()
    def online(self, pieces: Sequence[SeenSequences]) -> Online:
        """The encoder on micro-batches as a training gives them, in no order of length, and the head; medians."""
        seconds, warm_up = [], self._to_warm_up(pieces)
        for piece in (*warm_up, *pieces):
            started = self._clock()
            for input_ids, attention_mask in micro_batches(piece, self._micro_batch_size, self._pad_id):
                self._encode(input_ids, attention_mask)
            seconds.append((self._clock() - started) / len(piece.original_ids))
            self._done(piece)
        return Online(
            encoder_seconds_per_token=statistics.median(seconds[len(warm_up) :]),
            head_seconds_per_row=self._head_seconds_per_row(),
            memory=self._memory(pieces[0]),
        )

    def _computer(self, description: CacheDescription, *, compiled: bool = False) -> TargetsComputer:
        """`compiled`: the teacher is so from then on, whoever runs it."""
        return TargetsComputer(
            self._teacher,
            temperatures=description.temperatures,
            pad_id=self._pad_id,
            batch_tokens=self._batch_tokens,
            compiled=compiled,
        )

    def _to_warm_up(self, pieces: Sequence[SeenSequences]) -> Sequence[SeenSequences]:
        """The first piece; where the teacher is compiled all, as each kind of shape is compiled when it is first met."""
        return pieces if self._compiled else pieces[:1]

    def _done(self, piece: SeenSequences) -> None:
        self._context.progress.advance(len(piece.original_ids))
        self._context.stop_if_asked(KEPT)

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        device = input_device(self._teacher)
        encoder_hidden(self._teacher, input_ids.to(device), attention_mask.to(device))

    def _head_seconds_per_row(self) -> float:
        """In float32, chunk by chunk, on any hidden state: the speed does not depend on the values."""
        numbers = torch.Generator().manual_seed(0)
        hidden = torch.randn(HEAD_ROWS, self._head.hidden_size, generator=numbers).to(self._device)
        seconds = []
        for _ in range(1 + HEAD_ROUNDS):
            started = self._clock()
            for part in row_chunks(len(hidden), self._head.vocabulary_size):
                self._head.logits(hidden[part])
            seconds.append(self._clock() - started)
        return statistics.median(seconds[1:]) / HEAD_ROWS  # the first one takes memory and chooses kernels

    def _memory(self, piece: SeenSequences) -> TeacherMemory:
        """Measured on GPUs; elsewhere, where no allocator tells, from the shapes of what exists at a time."""
        input_ids, attention_mask = next(micro_batches(piece, self._micro_batch_size, self._pad_id))
        devices = {parameter.device for parameter in self._teacher.parameters()}
        if all(device.type == "cuda" for device in devices):
            for device in devices:
                torch.cuda.reset_peak_memory_stats(device)
            before = sum(map(torch.cuda.memory_allocated, devices))
            self._encode(input_ids, attention_mask)
            activations = sum(map(torch.cuda.max_memory_allocated, devices)) - before
            method = "measured"
        else:
            activations = input_ids.numel() * values_per_token(self._teacher) * self._teacher.dtype.itemsize
            method = "from shapes"
        return TeacherMemory(
            weights=sum(tensor.numel() * tensor.element_size() for tensor in self._teacher.parameters()),
            activations=activations + 2 * CHUNK_BYTES,
            method=method,
            head=sum(tensor.numel() * tensor.element_size() for tensor in self._head.tensors.values()),
        )


def values_per_token(teacher: PreTrainedModel) -> int:
    """Values that exist at a time for each token while a block without gradients is computed, by the shapes of its weights.

    Of a block, the feed-forward is the widest: its input, the residual beside it, and the wide layer before and after the
    activation. In attention: input, queries, keys, values and what comes of them.
    """
    hidden_size = ModelShape.of(teacher.config.to_dict()).hidden_size
    matrices = (
        parameter
        for module in teacher.base_model.modules()
        if not isinstance(module, torch.nn.Embedding)  # as high as the vocabulary, of which each token reads one row
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2  # experts have theirs in a stack
    )
    widest_layer = max((max(matrix.shape[-2:]) for matrix in matrices), default=hidden_size)
    return max(2 * hidden_size + 2 * widest_layer, 5 * hidden_size)


def micro_batches(seen: SeenSequences, size: int, pad_id: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and attention mask, i8 (sequences, tokens), `size` sequences at a time, padded to the longest of them."""
    offsets = seen.offsets.astype(np.int64)
    for begin in range(0, len(offsets) - 1, size):
        ends = offsets[begin : begin + size + 1]
        lengths = np.diff(ends)
        real = np.arange(int(lengths.max())) < lengths[:, None]
        ids = np.full(real.shape, pad_id, np.int64)
        ids[real] = seen.input_ids[ends[0] : ends[-1]]
        yield torch.from_numpy(ids), torch.from_numpy(real.astype(np.int64))


def _clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds, once the device is idle."""
    if device.type == "cpu":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock
