"""What identifies a training run, and how far it goes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from stages.batch_plan import BatchPlan
from stages.config import Config, TrainConfig, to_plain
from stages.config.base import refuse
from stages.context import Context
from stages.device import Precision, resolve_precision
from stages.models import weights_digest
from stages.training.teachers import FurtherCache, root_digests
from storage import CacheReader, canonical_json

LOSS_VERSION = 5
"""Raised by hand when a change of code changes what a run with the same parameters computes: its checkpoints end there."""


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run of `train-student`: other parameters, weights or caches make another one."""

    fingerprint: str
    name: str
    """For people, where several runs stand side by side."""
    plan: BatchPlan
    steps: int
    accumulation: int
    warmup_steps: int
    precision: Precision
    further: tuple[FurtherCache, ...] = ()
    """The caches of the other teachers of an ensemble."""


def plan_run(
    config: Config, context: Context, reader: CacheReader, further: Sequence[FurtherCache] = ()
) -> TrainingRun:
    """The run of these parameters from these caches.

    Raises `ConfigError` for what the processes cannot share, or the device not compute.
    """
    train = config.train
    per_pass = train.micro_batch_size * context.world_size
    if train.batch_size % per_pass:
        raise refuse(
            "train.batch_size",
            train.batch_size,
            f"a multiple of train.micro_batch_size x processes = {train.micro_batch_size} x {context.world_size}",
        )
    plan = batch_plan(config, reader)
    steps = train.steps or (train.epochs or 0) * plan.steps_per_epoch
    precision = resolve_precision(train.precision, context.device)
    if precision == "float16" and context.device == "cpu":
        raise refuse(
            "train.precision",
            "float16",
            "auto, float32 or bfloat16 on a CPU: float16 needs gradients that are scaled, which is done on GPUs",
        )
    identity = {
        "train": settings_of(train),
        "student": to_plain(config.student),
        "initial_weights": weights_digest(context.artefacts.student_init(train.student)),
        "cache": reader.root_digest,
        "precision": precision,
        "device": torch.device(context.device).type,
        "versions": {"loss": LOSS_VERSION, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if further:
        identity["further_caches"] = root_digests(further)
    fingerprint = hashlib.sha256(canonical_json(identity)).hexdigest()
    return TrainingRun(
        fingerprint=fingerprint,
        name=f"{context.artefacts.run or train.student}-{fingerprint[:8]}".replace("/", "-"),
        plan=plan,
        steps=steps,
        accumulation=train.batch_size // per_pass,
        warmup_steps=train.warmup(steps),
        precision=precision,
        further=tuple(further),
    )


def settings_of(train: TrainConfig) -> dict[str, Any]:
    """The parameters of a training that make it another run, as plain JSON."""
    settings: dict[str, Any] = to_plain(train)
    for name in ("checkpoint_steps", "log_steps", "gradient_checkpointing"):
        settings.pop(name, None)
    if not train.validation.chooses:  # looking at a run does not make it another one
        settings.pop("validation", None)
    if train.tail == "rest":  # runs from before there was a choice are the same runs
        settings.pop("tail")
    return settings


def batch_plan(config: Config, reader: CacheReader) -> BatchPlan:
    """Which sequences each step trains on."""
    return BatchPlan.of(reader.description, batch_size=config.train.batch_size, seed=config.train.seed)
