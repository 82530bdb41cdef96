"""Size and speed of a student and its teacher, measured side by side: none of it depends on their weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from stages.context import Context
from stages.forward_pass import encoder_hidden
from stages.models import count_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 128
"""Tokens per timed sequence, where the models and the corpus have as many."""

BATCH_SIZE = 8
"""Sequences per batch that throughput is measured with: enough to fill a processor's cores, few enough to take seconds."""

MIN_ROUNDS, MAX_ROUNDS = 5, 50
BUDGET_SECONDS = 10.0
"""Per device; rounds begun within it, and `MIN_ROUNDS` of them whatever they take."""


def compare_speed(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    *,
    student_bytes: int,
    teacher_bytes: int,
    sequence_tokens: int,
    context: Context,
) -> dict[str, Any]:
    """The content of `runs/speed-NAME.json` for two float32 models, both on the CPU; `*_bytes` are those of their weights on disk.

    Timed is the base model's forward pass, the part that any use downstream runs, on `sequence_tokens` tokens without padding:
    `latency_ms` at batch 1 and `sequences_per_second` at `batch_size`, medians over `rounds` or more, on the CPU (`cpu`) and,
    where `context.device` is a GPU, on that too (`cuda`). `ratio` is student / teacher.

    Raises `Interrupted` between rounds when asked to stop. Leaves the models on the device that was measured last.
    """
    models = {"student": student, "teacher": teacher}
    result: dict[str, Any] = {
        "student": {"parameters": count_parameters(student), "bytes": student_bytes},
        "teacher": {"parameters": count_parameters(teacher), "bytes": teacher_bytes},
        "sequence_tokens": sequence_tokens,
        "batch_size": BATCH_SIZE,
        "threads": torch.get_num_threads(),
    }
    result["ratio"] = {
        size: round(result["student"][size] / result["teacher"][size], 4) for size in ("parameters", "bytes")
    }
    devices = dict.fromkeys(("cpu", context.device))
    result["rounds"] = min(_add_device(result, models, device, context) for device in devices)
    return result


def _add_device(result: dict[str, Any], models: Mapping[str, PreTrainedModel], device: str, context: Context) -> int:
    """Add what was measured on `device` under its kind, `cpu` or `cuda`; returns the number of rounds."""
    kind = torch.device(device).type
    batch_size, tokens = result["batch_size"], result["sequence_tokens"]
    seconds = _interleaved_seconds(
        {
            (name, size): _forward(model, size, tokens, device)
            for name, model in models.items()
            for size in (1, batch_size)
        },
        device,
        context,
    )
    medians = {timed: statistics.median(values) for timed, values in seconds.items()}
    for name in models:
        result[name][kind] = {
            "latency_ms": round(1000 * medians[name, 1], 3),
            "sequences_per_second": round(batch_size / medians[name, batch_size], 1),
        }
    result["ratio"][kind] = {
        "latency": round(medians["student", 1] / medians["teacher", 1], 3),
        "throughput": round(medians["teacher", batch_size] / medians["student", batch_size], 3),
    }
    return len(seconds["student", 1])


def _forward(model: PreTrainedModel, batch_size: int, tokens: int, device: str) -> Callable[[], object]:
    torch.nn.Module.to(model, device)  # transformers hides the signature of model.to
    numbers = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch_size, tokens), generator=numbers).to(device)
    attention_mask = torch.ones_like(ids)
    return lambda: encoder_hidden(model, ids, attention_mask)


@torch.inference_mode()
def _interleaved_seconds(
    calls: Mapping[tuple[str, int], Callable[[], object]], device: str, context: Context
) -> dict[tuple[str, int], list[float]]:
    """Seconds of each call in each round. All take turns, so that what else the machine does meets them alike."""
    wait: Callable[[], object] = (lambda: None) if device == "cpu" else (lambda: torch.cuda.synchronize(device))
    context.progress.begin(f"measure speed on {device}", None, "rounds")
    seconds: dict[tuple[str, int], list[float]] = {timed: [] for timed in calls}
    for call in calls.values():  # the first pass of a shape chooses kernels and takes memory
        call()
    started = time.perf_counter()
    for rounds in range(MAX_ROUNDS):
        if rounds >= MIN_ROUNDS and time.perf_counter() - started > BUDGET_SECONDS:
            break
        context.stop_if_asked("the initial weights are written, their speed is not")
        for timed, call in calls.items():
            wait()
            before = time.perf_counter()
            call()
            wait()
            seconds[timed].append(time.perf_counter() - before)
        context.progress.advance(1)
    return seconds
