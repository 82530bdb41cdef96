"""A student with its distillation loss, and the Trainer that drives it."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.batches import Batch, PlannedBatches, TargetDecoder, Wanted
from stages.config import TrainConfig
from stages.context import Context
from stages.errors import InputError, StageError
from stages.heads import Head, filled
from stages.losses import IGNORED, HiddenTargets, Targets, cosine_loss_sum, distillation_loss
from stages.models import encoder_hidden
from storage.files import sync_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("kd", "mlm", "cos")
"""Parts of the loss in the log, unweighted: nats per position, nats per predicted token, and 1 - cosine per position."""


def wanted_by(config: TrainConfig) -> Wanted:
    """The stored targets that the losses of a training read."""
    kd = config.kd_source if config.weights.kd > 0 else None
    return Wanted(hidden=kd == "hidden" or config.weights.cos > 0, logits=kd == "top_k", draws=config.reads_draws)


class Distiller(nn.Module):
    """The student and what its loss needs of the teacher: a frozen head, or nothing."""

    def __init__(
        self, student: PreTrainedModel, config: TrainConfig, decoder: TargetDecoder, teacher_head: Head | None
    ) -> None:
        super().__init__()
        self.student = student
        if config.freeze_position_embeddings:
            embeddings: Any = cast("Any", student.base_model).get_position_embeddings()
            embeddings.requires_grad_(False)
        self._config = config
        self._decoder = decoder
        self._teacher_head = teacher_head

    def positions(self, batch: Batch) -> int:
        """The positions that KD and cosine are means over."""
        return self._decoder.positions(batch)

    def forward(self, batch: Batch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and parts of a micro-batch; `counts` f4 (2,): positions and labelled rows of the whole optimizer step."""
        config = self._config
        rows = encoder_hidden(self.student, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)[
            batch["row_index"]
        ]
        head = Head.of(self.student)
        weight, bias = head.projection
        position_count, label_count = counts.clamp_min(1).unbind()
        teacher_hidden = self._decoder.hidden(batch) if "hidden" in batch else None
        row_weights = self._decoder.row_weights(batch)
        loss = distillation_loss(
            head.features(filled(rows))[: len(rows)],
            weight,
            bias,
            labels=batch["labels"],
            targets=self._targets(batch, teacher_hidden),
            temperature=config.temperature,
            kd_scale=config.weights.kd / position_count,
            mlm_scale=config.weights.mlm / label_count,
            row_weights=row_weights,
        )
        total, cos_sum = loss.total, torch.zeros_like(loss.kd_sum)
        if config.weights.cos > 0 and teacher_hidden is not None:
            cos = cosine_loss_sum(rows, teacher_hidden, row_weights)
            total = total + config.weights.cos / position_count * cos
            cos_sum = cos.detach()
        parts = torch.stack([loss.kd_sum / position_count, loss.mlm_sum / label_count, cos_sum / position_count])
        return total, parts

    def _targets(self, batch: Batch, teacher_hidden: Tensor | None) -> Targets | None:
        config = self._config
        if config.weights.kd == 0:
            return None
        if config.reads_draws:
            return self._decoder.draws(batch, config.temperature)
        if config.kd_source == "top_k":
            return self._decoder.top_k(batch, config.temperature, renormalise=config.tail == "renormalise")
        if self._teacher_head is None or teacher_hidden is None:
            raise ValueError("kd_source hidden needs the cached head and hidden states")
        if self._teacher_head.projection[0].device != teacher_hidden.device:
            self._teacher_head = self._teacher_head.to(teacher_hidden.device)
        return HiddenTargets(teacher_hidden, self._teacher_head)


class DistillationTrainer(Trainer):
    """`transformers.Trainer` with the cache's batches, the distillation loss and checkpoints that are whole or absent."""

    def __init__(
        self, distiller: Distiller, args: TrainingArguments, batches: PlannedBatches, folder: Path, **kwargs: Any
    ) -> None:
        super().__init__(model=distiller, args=args, train_dataset=batches, **kwargs)
        # The loss is normalised by the counts of the whole optimizer step; Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True
        self._distiller = distiller
        self._batches = batches
        self._folder = folder
        self._parts = torch.zeros(len(PARTS), device=args.device)
        self._parts_since = 0
        self._started = time.monotonic()
        self._seconds_before: float | None = None

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The plan's batches as they come: they are already made for this rank and start at the right step."""
        # Its own generator: a loader draws from torch's global one when it starts, which would shift dropout on a resume.
        return DataLoader(self._batches, batch_size=None, generator=torch.Generator())

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """Positions and labelled rows of one optimizer step, f4 (2,), over its micro-batches and all ranks."""
        positions = sum(self._distiller.positions(batch) for batch in batch_samples)
        labelled = sum(int((batch["labels"] != IGNORED).sum()) for batch in batch_samples)
        counts = torch.tensor([positions, labelled], dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(counts)
        return counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the loss. DDP averages gradients over ranks, so it is scaled up by their number."""
        total, parts = model(inputs, num_items_in_batch)
        self._parts += parts.detach()
        total = total * self.args.world_size
        return (total, {"parts": parts}) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each part since the last log; one synchronisation per log, none per step."""
        steps = self.state.global_step - self._parts_since
        if "loss" in logs and steps > 0:
            parts = self._parts.clone()
            if self.args.world_size > 1:
                torch.distributed.all_reduce(parts)
            logs.update(zip(PARTS, (parts / steps).tolist(), strict=True))
            self._parts.zero_()
            self._parts_since = self.state.global_step
        if "loss" in logs:
            if self._seconds_before is None:  # what the processes before this one took, up to the checkpoint
                self._seconds_before = seconds_of(self.state.log_history)
            logs["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 2)
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        del state_dict  # always the student's own, as a Hugging Face folder
        self.accelerator.unwrap_model(self.model).student.save_pretrained(output_dir or self._folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.accelerator.unwrap_model(model or self.model).student, Path(resume_from_checkpoint))
        self._parts_since = checkpoint_step(Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under a temporary name, sync, rename: a folder `checkpoint-N` is whole, whenever the process dies."""
        final = self._folder / f"checkpoint-{self.state.global_step}"
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            draft = Path(self._get_output_dir(trial)) / final.name
            sync_tree(draft)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _keep_latest(final.parent, 2)

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self._folder / ".tmp-draft")


class ReportProgress(TrainerCallback):
    """Shows steps and losses, and turns a request to stop into a checkpoint and the end of the training."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; save and end where a stop was asked for. A checkpoint always closes a log interval."""
        del args, kwargs
        self._context.progress.advance(1)
        if self._context.should_stop() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        if control.should_save:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss beside the bar."""
        del args, control, kwargs
        if logs and "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise StageError(
                    f"the loss is {logs['loss']} at step {state.global_step}; expected a finite number; lower train.learning_rate or "
                    "raise train.warmup_steps, or set train.precision to float32"
                )
            shown = {name: round(logs[name], 4) for name in ("loss", *PARTS) if name in logs}
            self._context.progress.advance(0, **shown)


def load_weights(student: PreTrainedModel, folder: Path) -> None:
    """Load `model.safetensors` of a checkpoint into a student. Raises `InputError` where tensors are missing or unknown.

    Tied weights are stored once, under one of their names.
    """
    try:
        loaded = load_file(folder / "model.safetensors")
        result = student.load_state_dict(loaded, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded ({error}); remove that folder and run again") from error
    state = student.state_dict()
    filled = {state[name].data_ptr() for name in loaded if name in state}
    missing = [name for name in result.missing_keys if state[name].data_ptr() not in filled]
    if missing or result.unexpected_keys:
        raise InputError(
            f"{folder} is no checkpoint of this student: missing {missing}, unknown {result.unexpected_keys}; "
            "remove that folder and run again"
        )


def seconds_of(history: list[dict[str, float]]) -> float:
    """How long the training took up to the last entry of its log, over all processes that had a part in it."""
    return next((entry["seconds"] for entry in reversed(history) if "seconds" in entry), 0.0)


def checkpoint_step(folder: Path) -> int:
    """Optimizer steps done at `checkpoint-N`."""
    return int(folder.name.rpartition("-")[2])


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None. Drafts of a killed process do not count."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=checkpoint_step, default=None)


def _keep_latest(folder: Path, count: int) -> None:
    found = sorted(folder.glob("checkpoint-*"), key=checkpoint_step)
    for old in found[:-count]:
        shutil.rmtree(old)
