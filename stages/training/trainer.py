"""The Trainer that drives a distiller: its batches, counts, log and checkpoints.

Nothing here waits for the device within a step: batches come from pinned memory, and what is logged is added up on the device and read
once per line of the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from stages.batches import Batch, PlannedBatches
from stages.batches.joined import JoinedBatches
from stages.errors import SaidElsewhere, StageError
from stages.training.checkpoints import (
    Checkpoint,
    Checkpoints,
    LogState,
    load_beside,
    load_weights,
    said_where_not_written,
    save_beside,
    split_state,
)
from stages.training.distiller import Distiller
from stages.training.log import LOSSES, refuse_not_finite
from stages.training.processes import Processes
from stages.training.validation import PREFIX, Validation
from storage import CacheError
from storage.files import discard


class DistillationTrainer(Trainer):
    """`transformers.Trainer` with the cache's batches, the distillation loss and checkpoints that are whole or absent."""

    def __init__(
        self,
        distiller: Distiller,
        args: TrainingArguments,
        batches: PlannedBatches | JoinedBatches,
        validation: Validation,
        *,
        checkpoints: Checkpoints,
        resumed: Checkpoint | None,
        processes: Processes,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=distiller, args=args, train_dataset=batches, **kwargs)
        # The loss is normalised by the counts of the whole optimizer step; Trainer must not divide it by the micro-batches again.
        # This attribute says so to every version; `loss_is_scaled_for_ga` says it better, but only from 5.19 on.
        self.model_accepts_loss_kwargs = True
        self._distiller, self._batches = distiller, batches
        self._checkpoints, self._resumed, self._processes = checkpoints, resumed, processes
        self._validation = validation
        self._saved_step = 0 if resumed is None else resumed.step
        self._sums = torch.zeros(len(LOSSES), device=args.device)
        """Of the loss and its parts since the last line of the log."""
        self._summed_since = 0 if resumed is None else resumed.log.since
        self._began = self._logged_at = time.monotonic()
        self._waited_s = 0.0
        """Host time in which there was no batch yet, since the last line of the log: reading, padding and copying included."""
        self._away_s = 0.0
        """Host time that went into validations and checkpoints since then."""
        if resumed is not None:
            self._sums += torch.tensor(_sums_of(resumed.log.sums, processes), device=args.device)
            self._began -= resumed.log.seconds
        # Trainer has seeded all processes alike; dropout is to be another in each of them.
        torch.manual_seed(args.seed + processes.rank)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """The plan's batches as they come: they are already made for this rank and start at the right step."""
        # Its own generator: a loader draws from torch's global one when it starts, which would shift dropout on a resume.
        return DataLoader(self._batches, batch_size=None, generator=torch.Generator())

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """The micro-batches of one optimizer step, and its positions and labelled rows over all processes, f4 (2,).

        Where a process has no batch, because a shard is damaged say, all save what they have done, and end. There are none where a
        validation that was due before the first step has ended the training.
        """
        if self.control.should_training_stop:
            return [], torch.zeros(2)
        batches: list[Batch] = []
        error: Exception | None = None
        started = time.monotonic()
        try:
            batches.extend(islice(epoch_iterator, num_batches))
        except (CacheError, StageError, OSError) as caught:
            error = caught
        self._waited_s += time.monotonic() - started
        positions = sum(self._distiller.positions(batch) for batch in batches)
        labelled = sum(batch["labels"].numel() for batch in batches)
        *counts, failed = self._processes.add(positions, labelled, float(error is not None))
        if failed:
            self._save_and_end(error)
        return batches, torch.tensor(counts, dtype=torch.float32, pin_memory=self._on_gpu).to(device, non_blocking=True)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in inputs.items()}

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Held-out figures of the student as it is, in the log too; empty where a stop was asked for meanwhile."""
        started = time.monotonic()
        try:
            figures = self._validation.figures(self._distiller.student)
        except (CacheError, StageError, OSError) as error:
            self._save_and_end(error)
        logged = {f"{PREFIX}{name}": value for name, value in figures.items()}
        if logged:
            self.log(dict(logged))  # it adds the epoch
        self._away_s += time.monotonic() - started
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The micro-batch's share of the loss. DDP averages gradients over ranks, so it is scaled up by their number."""
        total, parts = model(inputs, num_items_in_batch)
        self._sums += torch.cat([total.detach()[None], parts.detach()])
        total = total * self.args.world_size
        return (total, {"parts": parts}) if return_outputs else total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the loss and its parts over the steps since the last line, and where the time went."""
        if "loss" in logs:
            logs.update(self._means())
            now = time.monotonic()
            shares = self._processes.gather([self._waited_s / max(now - self._logged_at - self._away_s, 1e-9)])
            logs["data_wait"] = round(max(share for (share,) in shares), 4)
            logs["seconds"] = round(now - self._began, 2)
            self._logged_at, self._waited_s, self._away_s = now, 0.0, 0.0
        # Trainer takes what it knows of the loader for an epoch, and counts anew after a resume.
        self.state.epoch = self.state.global_step / self._batches.steps_per_epoch
        super().log(logs, start_time)

    def _means(self) -> dict[str, float]:
        sums = _together(self._processes.gather(self._sums.tolist()))
        steps = self.state.global_step - self._summed_since
        self._sums.zero_()
        self._summed_since = self.state.global_step
        means = {name: value / steps for name, value in zip(LOSSES, sums, strict=True)}
        return {name: means[name] for name in ("loss", *self._distiller.parts)}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        del state_dict  # always the student's own, as a Hugging Face folder
        if self.args.should_save:
            folder = Path(output_dir or self._checkpoints.folder)
            self._distiller.student.save_pretrained(folder)
            save_beside(split_state(self._distiller.state_dict())[1], folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        del resume_from_checkpoint, model
        assert self._resumed is not None
        load_weights(self._distiller.student, self._resumed.folder)
        load_beside(self._distiller, self._resumed.folder)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        assert self._resumed is not None
        if self._resumed.processes == self._processes.size:
            super()._load_rng_state(checkpoint)
        else:  # there is no state for each of them: new numbers, which no process has drawn before
            torch.manual_seed(self.args.seed + (self._resumed.step << 20) + self._processes.rank)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under a temporary name, sync, rename: a folder `checkpoint-N` is whole, whenever a process dies."""
        step, first, started = self.state.global_step, self._processes.rank == 0, time.monotonic()
        log = LogState(
            since=self._summed_since,
            sums=self._processes.gather(self._sums.tolist()),
            seconds=round(time.monotonic() - self._began, 2),
        )
        for losses in log.sums:
            refuse_not_finite(losses[0], step, self._processes)
        if first:
            discard(self._checkpoints.draft)  # of a killed process
        self._processes.wait()
        with said_where_not_written(step, self._checkpoints.folder):
            super()._save_checkpoint(model, trial)
        self._processes.wait()  # each has written the state of its random numbers
        if first:
            checkpoint = Checkpoint(
                folder=self._checkpoints.folder / f"checkpoint-{step}",
                step=step,
                processes=self._processes.size,
                log=log,
            )
            with said_where_not_written(step, self._checkpoints.folder):
                self._checkpoints.publish(checkpoint, best_step=self._validation.kept_step(self.state.log_history))
        self._processes.wait()  # one that ends before would have torchrun end the first one, too
        self._saved_step = step
        self._away_s += time.monotonic() - started

    def _save_and_end(self, error: Exception | None) -> Never:
        """End with this process's error, or with that of another; what is done is saved, where that is possible."""
        if self.state.global_step > self._saved_step:
            with suppress(StageError, OSError):  # then there is the checkpoint before this one
                self._save_checkpoint(self.model_wrapped, None)
        raise SaidElsewhere if error is None else error

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self._checkpoints.draft)

    @property
    def _on_gpu(self) -> bool:
        return self.args.device.type == "cuda"


def _sums_of(saved: list[list[float]], processes: Processes) -> list[float]:
    """What this process goes on adding to; only all of them together matter where there are more or fewer than there were."""
    if len(saved) == processes.size:
        return saved[processes.rank]
    return _together(saved) if processes.rank == 0 else [0.0] * len(LOSSES)


def _together(sums: list[list[float]]) -> list[float]:
    return [sum(values) for values in zip(*sums, strict=True)]
