"""The cache of a downstream task beside its fine-tuned teacher: answers, and hidden states where there are any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.against_teacher.agreement import BATCH, ROUNDING, Measured, turned
from stages.context import Context
from stages.device import torch_dtype
from stages.draws import ShardUniforms
from stages.model_config import ModelShape
from stages.task_cache.targets import SeenExamples, TaskComputer
from stages.task_models import load_task_model
from storage import CacheReader, Layout, ShardArrays, ShardId, decode_vectors

BATCH_TOKENS = 4096
WHAT = {"classification": "class logits", "answers": "logits of where the answer begins and ends"}


def compare_task(
    reader: CacheReader, context: Context, chosen: Mapping[ShardId, Sequence[int]], *, same: bool
) -> tuple[int, tuple[Measured, ...]]:
    """Number of tokens and figures of the `chosen` sequences, by the fine-tuned teacher in `context.artefacts.teacher`.

    `same`: they were computed on hardware as it is here. Answers are stored as they are, so only rounding may move them. Raises as
    `compare_with_teacher`.
    """
    description, artefacts = reader.description, context.artefacts
    task, made, layout = description.task, description.spec["cache"], description.splits["train"].layout
    assert task is not None
    last = ModelShape.of(description.teacher_config).layers
    teacher = load_task_model(
        artefacts.teacher,
        task["head"],
        None if task["labels"] is None else tuple(task["labels"]),
        attention=made["attention"],
        dtype=torch_dtype(made["precision"]),
        device=context.device,
        command=artefacts.teacher_command,
    )
    uncoded = layout if layout.hidden == "none" else replace(layout, hidden="float32")
    computer = TaskComputer(
        teacher,
        layers=last,
        pad_id=description.pad_id,
        batch_tokens=BATCH_TOKENS,
        hidden=layout.hidden != "none",
    )
    sums = _Sums(ROUNDING[made["precision"]][0 if same else 1], layout, last, score=layout.task_width == 1)
    for shard, places in chosen.items():
        arrays = reader.load(shard)
        for begin in range(0, len(places), BATCH):
            context.stop_if_asked("nothing was changed")
            rows = arrays.select(np.asarray(places[begin : begin + BATCH]))
            now = computer.compute(_seen(rows, shard), uncoded, context.should_stop).targets()
            sums.add(rows, cast("npt.NDArray[np.float32]", now.task_logits), now.encoded.get("hidden"))
            context.progress.advance(len(rows.sequence_ids), shard=str(shard))
    return sums.tokens, tuple(sums.figures())


def _seen(rows: ShardArrays, shard: ShardId) -> SeenExamples:
    return SeenExamples(
        offsets=rows.sequence_offsets,
        original_ids=rows.original_ids,
        input_ids=rows.input_ids,
        masked=rows.masked,
        start=int(rows.sequence_ids[0]),
        uniforms=ShardUniforms(0, shard.split, shard.variant),
        token_types=rows.token_types,
        labelled=cast("npt.NDArray[np.uint8]", rows.task_labelled),
        label=cast("npt.NDArray[np.float32]", rows.task_label),
    )


class _Sums:
    """Sums over the distributions that the teacher gives (of an input over the classes, or twice over its tokens), and over tokens."""

    def __init__(self, rounding: float, layout: Layout, last_layer: int, *, score: bool) -> None:
        self._rounding, self._layout, self._last, self._score = rounding, layout, last_layer, score
        self.tokens = 0
        self._total: defaultdict[str, float] = defaultdict(float)
        self._largest: defaultdict[str, float] = defaultdict(float)
        self._turns: dict[int, Tensor] = {}

    def add(self, rows: ShardArrays, now: npt.NDArray[np.float32], hidden: npt.NDArray[Any] | None) -> None:
        """What is stored of some sequences, what the teacher says now, and its hidden states f4 (N, L, H) where they are cached."""
        self.tokens += rows.tokens
        for found, stored in zip(
            self._distributions(rows, now), self._distributions(rows, rows.task_logits), strict=True
        ):
            self._add_distribution(found, stored)
        if hidden is not None:
            cached = torch.from_numpy(decode_vectors(self._layout, "hidden", rows.hidden))
            states = torch.from_numpy(hidden)
            for place, layer in enumerate(self._layout.hidden_layers):
                found = turned(states[:, place], cached[:, place], self._layout, "hidden", self._rounding)
                self._turns[layer] = self._turns.get(layer, 0) + found

    def _distributions(self, rows: ShardArrays, logits: npt.NDArray[np.float32] | None) -> Iterator[Tensor]:
        """f8, one axis each."""
        values = torch.from_numpy(cast("npt.NDArray[np.float32]", logits)).double()
        if self._layout.task != "answers":
            yield from values
            return
        for first, end in zip(rows.sequence_offsets, rows.sequence_offsets[1:], strict=False):
            yield from values[int(first) : int(end)].unbind(-1)

    def _add_distribution(self, now: Tensor, stored: Tensor) -> None:
        bound = self._rounding * (1 + float(now.abs().max()))
        self._total["rows"] += 1
        self._largest["found"] = max(self._largest["found"], float((now - stored).abs().max()))
        self._largest["limit"] = max(self._largest["limit"], bound)
        if self._score:
            return
        log_p, log_q = now.log_softmax(-1), stored.log_softmax(-1)
        self._total["kl"] += max(0.0, float((log_p.exp() * (log_p - log_q)).sum()))
        self._total["kl_limit"] += bound**2 / 2
        self._total["agree"] += float(now.argmax() == stored.argmax())
        best = now.topk(min(2, len(now))).values
        self._total["close"] += float(len(best) > 1 and best[0] - best[1] <= 2 * bound)

    def figures(self) -> Iterator[Measured]:
        """All of the split `train`, which is the only one."""
        mean = {name: value / max(1.0, self._total["rows"]) for name, value in self._total.items()}
        what = "score" if self._score else WHAT[self._layout.task]
        yield Measured(
            split="train",
            name=f"largest difference of {what}",
            found=self._largest["found"],
            limit=self._largest["limit"],
        )
        if not self._score:
            yield Measured(split="train", name="KL of the answers, nats", found=mean["kl"], limit=mean["kl_limit"])
            yield Measured(
                split="train", name="top-1 agreement", found=mean["agree"], limit=1 - mean["close"], at_least=True
            )
        for layer, turns in self._turns.items():
            where = "" if layer == self._last else f" of layer {layer}"
            yield Measured.of_turns("train", f"hidden states{where}", turns / self.tokens)
