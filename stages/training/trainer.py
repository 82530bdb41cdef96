"""The Trainer that drives a distiller: its batches, counts, log and checkpoints."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from stages.batches import Batch, PlannedBatches
from stages.training.checkpoints import checkpoint_step, keep_latest, load_weights
from stages.training.distiller import PARTS, Distiller
from stages.training.log import seconds_of
from stages.training.validation import PREFIX, Validation
from storage.files import sync_tree


class DistillationTrainer(Trainer):
    """`transformers.Trainer` with the cache's batches, the distillation loss and checkpoints that are whole or absent."""

    def __init__(
        self,
        distiller: Distiller,
        args: TrainingArguments,
        batches: PlannedBatches,
        folder: Path,
        validation: Validation,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=distiller, args=args, train_dataset=batches, **kwargs)
        # The loss is normalised by the counts of the whole optimizer step; Trainer must not divide it again.
        self.loss_is_scaled_for_ga = True
        self._distiller = distiller
        self._batches = batches
        self._folder = folder
        self._validation = validation
        self._parts = torch.zeros(len(PARTS), device=args.device)
        self._parts_since = 0
        self._started = time.monotonic()
        self._seconds_before: float | None = None

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The plan's batches as they come: they are already made for this rank and start at the right step."""
        # Its own generator: a loader draws from torch's global one when it starts, which would shift dropout on a resume.
        return DataLoader(self._batches, batch_size=None, generator=torch.Generator())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Batch], Any]:
        """As Trainer's; nothing where a validation that was due before the first step has ended the training."""
        if self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out figures of the student as it is, in the log too; empty where a stop was asked for meanwhile."""
        figures = self._validation.figures(self.accelerator.unwrap_model(self.model).student)
        logged = {f"{PREFIX}{name}": value for name, value in figures.items()}
        if logged:
            self.log(dict(logged))  # it adds the epoch
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor:
        """Positions and labelled rows of one optimizer step, f4 (2,), over its micro-batches and all ranks."""
        positions = sum(self._distiller.positions(batch) for batch in batch_samples)
        labelled = sum(batch["labels"].numel() for batch in batch_samples)
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
            keep_latest(final.parent, 2, besides=self._validation.kept_step(self.state.log_history))

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self._folder / ".tmp-draft")
