"""The distillation loss against what it takes the place of: time and memory, forward and backward, of the loss alone.

What is computed: from the student's features (tokens, H), through its projection (V, H), to the gradients of both.

- `loss_time`: KD with sparse targets (top-32 and one bucket for the rest) and cross-entropy, in one pass, against a plain `linear` and
  `cross_entropy` at the same positions, each with a label at every position.
- `loss_time_head`: the same with the teacher's full distribution, rebuilt from its hidden states by its head: four products with a
  projection against three, so 1.33 by FLOPs.
- `loss_memory`: what the loss takes beyond its inputs at its peak, against the dense KD loss: full student logits, `kl_div` with the
  teacher's logits, which are there already, and `cross_entropy`. Peak RSS, each in a process of its own.

On a CPU in float32. On a GPU in bfloat16 autocast over float32 weights, and memory is what torch's allocator had at its peak.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure import Spread, arguments, finish, forget_peak, interleaved, memory, ratio, rounds
from torch import Tensor

from pipeline.summary import print_table
from stages.heads import Head
from stages.losses import HiddenTargets, TopKTargets, distillation_loss

GOALS = {"loss_memory": "<= 0.125", "loss_time": "<= 1.05", "loss_time_head": "<= 1.33"}
TEMPERATURE, KD, MLM, K = 2.0, 5.0, 2.0, 32
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REPEATS = 20 if DEVICE == "cuda" else 1
"""Passes that are timed as one, for a GPU takes milliseconds."""


@dataclass(frozen=True)
class Shape:
    """Of the student's features and projection."""

    tokens: int
    vocabulary: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.tokens:,} x {self.vocabulary:,} x {self.hidden}"


SHAPE = Shape(4096, 30_522, 768)
LARGER = (Shape(8192, 30_522, 768), Shape(4096, 119_547, 768))
QUICK = Shape(256, 1000, 64)


class Case:
    """Random features, projections of a student and a teacher, and labels."""

    def __init__(self, shape: Shape) -> None:
        generator = torch.Generator(DEVICE).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=DEVICE)

        self.features = normal(shape.tokens, shape.hidden).requires_grad_()
        self.weight = (normal(shape.vocabulary, shape.hidden) * 0.05).requires_grad_()
        self.bias = torch.zeros(shape.vocabulary, device=DEVICE).requires_grad_()
        self.labels = torch.randint(shape.vocabulary, (shape.tokens,), generator=generator, device=DEVICE)
        projection = {"op": "projection", "weight": "weight", "bias": None}
        self.head = Head((projection,), {"weight": normal(shape.vocabulary, shape.hidden) * 0.05})
        self.hidden = normal(shape.tokens, shape.hidden)

    def top_k(self) -> TopKTargets:
        """What a cache holds of the teacher."""
        parts = []
        for part in self.hidden.split(256):
            logits = self.head.logits(part) / TEMPERATURE
            values, ids = logits.topk(K)
            parts.append((ids, values - logits.logsumexp(-1, keepdim=True)))
        ids, log_p = (torch.cat(some) for some in zip(*parts, strict=True))
        return TopKTargets(ids, log_p)

    def ours(self, targets: TopKTargets | HiddenTargets) -> None:
        """One pass, with gradients."""
        with arithmetic():
            loss = distillation_loss(
                self.features, self.weight, self.bias, labels=self.labels, targets=targets, temperature=TEMPERATURE,
                kd_scale=KD / len(self.labels), mlm_scale=MLM / len(self.labels),
            )  # fmt: skip
        loss.total.backward()  # type: ignore[no-untyped-call]
        self.forget()

    def plain(self) -> None:
        """Cross-entropy alone."""
        with arithmetic():
            loss = F.cross_entropy(F.linear(self.features, self.weight, self.bias), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.forget()

    def dense(self, teacher_logits: Tensor) -> None:
        """The published losses, as PyTorch offers them."""
        with arithmetic():
            logits = F.linear(self.features, self.weight, self.bias)
            log_q, p = F.log_softmax(logits / TEMPERATURE, -1), F.softmax(teacher_logits / TEMPERATURE, -1)
            kd = F.kl_div(log_q, p, reduction="batchmean")
            loss = KD * TEMPERATURE**2 * kd + MLM * F.cross_entropy(logits, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        """Drop the gradients, as a step of the optimizer does."""
        self.features.grad = self.weight.grad = self.bias.grad = None


def arithmetic() -> AbstractContextManager[object]:
    """What forward passes are computed in."""
    return nullcontext() if DEVICE == "cpu" else torch.autocast("cuda", torch.bfloat16)


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    shapes = (QUICK,) if options.quick else (SHAPE, *LARGER)
    rows, ratios = [], {}
    for shape in shapes:
        first = shape is shapes[0]
        times = _times(shape, rounds(options) if first else 1)
        peaks = {name: _elsewhere(shape, name) for name in ("dense", "sparse", "head")}
        found = {
            "loss_time": ratio(times["sparse"], times["plain"]),
            "loss_time_head": ratio(times["head"], times["plain"]),
            "loss_memory": Spread.of([peaks["sparse"] / peaks["dense"]]),
            "loss_memory_head": Spread.of([peaks["head"] / peaks["dense"]]),
        }
        if first:
            ratios = found
        for name in ("plain", "dense", "sparse", "head"):
            took, size = times.get(name), peaks.get(name)
            rows.append(
                [
                    str(shape),
                    name,
                    "-" if took is None else Spread.of([1e3 * seconds for seconds in took]).shown(),
                    "-" if took is None else ratio(took, times["plain"]).shown(),
                    "-" if size is None else f"{size / 1e6:,.0f}",
                    "-" if size is None else f"{size / peaks['dense']:.3f}",
                ]
            )
    print_table(
        f"loss and gradients, {torch.cuda.get_device_name() if DEVICE == 'cuda' else f'{torch.get_num_threads()} threads'}",
        ["tokens x V x H", "", "milliseconds", "by plain", "MB", "by dense"],
        rows,
    )
    finish(ratios, GOALS, options.json, quick=options.quick)


def _times(shape: Shape, count: int) -> dict[str, list[float]]:
    case = Case(shape)
    sparse, through_head = case.top_k(), HiddenTargets(case.hidden, case.head)
    runs: dict[str, Callable[[], None]] = {
        "plain": case.plain,
        "sparse": lambda: case.ours(sparse),
        "head": lambda: case.ours(through_head),
    }
    return interleaved({name: lambda run=run: _seconds(run) for name, run in runs.items()}, count)


def _seconds(run: Callable[[], None]) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPEATS):
        run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / REPEATS


def _elsewhere(shape: Shape, name: str) -> int:
    """Bytes beyond the inputs; on a CPU of a process of its own, as what was freed stays with a process."""
    if DEVICE == "cuda":
        return _peak(shape, name)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, shape, name).result()


def _peak(shape: Shape, name: str) -> int:
    case = Case(shape)
    if name == "dense":
        teacher_logits = case.head.logits(case.hidden)
        run = lambda: case.dense(teacher_logits)  # noqa: E731
    else:
        targets = case.top_k() if name == "sparse" else HiddenTargets(case.hidden, case.head)
        run = lambda: case.ours(targets)  # noqa: E731
    # Kernels and thread pools are there before it counts.
    F.linear(case.features[:64], case.weight).sum().backward()  # type: ignore[no-untyped-call]
    case.forget()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with suppress(AttributeError):  # what was freed goes back to the system, or the loss would be given it
        ctypes.CDLL(None).malloc_trim(0)
    forget_peak()
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


if __name__ == "__main__":
    main()
