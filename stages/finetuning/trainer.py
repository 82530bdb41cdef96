"""The Trainer that fine-tunes a model: planned batches, checkpoints that are whole or absent, no wait for the device within a step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from stages.config import FinetuneConfig, TaskTraining
from stages.context import Context
from stages.device import Precision
from stages.errors import Interrupted, StageError
from stages.finetuning.batches import Padded, training_batches
from stages.tasks.task import Row
from stages.training.arguments import keep_to
from stages.training.checkpoints import Checkpoint, Checkpoints, LogState, load_weights, log_of
from stages.training.progress import ReportProgress
from storage.files import discard

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""The mean loss of a batch, given the model and the batch on its device."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training was."""

    steps: int
    loss: float
    """Mean over the last steps: those since the last but one line of the log, or since the start that ended the training."""
    seconds: float
    """Over all starts that had a part in it."""


def fine_tune(
    model: PreTrainedModel,
    rows: Sequence[Row],
    lengths: npt.NDArray[np.int64],
    *,
    name: str,
    pad_id: int,
    training: TaskTraining,
    seed: int,
    precision: Precision,
    settings: FinetuneConfig,
    checkpoints: Checkpoints,
    context: Context,
    loss: Loss | None = None,
) -> Trained:
    """Train `model` in place on the rows of `lengths` (rows,), from its newest checkpoint where there is one.

    `loss` None: the model's own.

    Raises `Interrupted` after a checkpoint when asked to stop, and `StageError` where the loss is no longer finite.
    """
    batches = training_batches(lengths, training, seed)
    checkpoints.folder.mkdir(parents=True, exist_ok=True)
    resumed = checkpoints.newest(context.progress.message)
    first = 0 if resumed is None else resumed.step
    context.progress.begin(f"fine-tune on {name}, seed {seed}", len(batches), "steps", done=first)
    if resumed is not None and first == len(batches):
        load_weights(model, resumed.folder)
        nn.Module.to(model, context.device)  # transformers hides the signature of model.to
        return Trained(steps=first, loss=_loss_of(log_of(resumed.folder)), seconds=resumed.log.seconds)
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder),
        max_steps=len(batches),
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(training.warmup_fraction * len(batches)),
        weight_decay=training.weight_decay,
        max_grad_norm=1.0,
        bf16=precision == "bfloat16",
        use_cpu=context.device == "cpu",
        seed=seed,
        logging_steps=min(settings.log_steps, len(batches)),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        ignore_data_skip=True,  # the batches begin at the right step by themselves
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )
    keep_to(arguments, context.device)
    trainer = FinetuningTrainer(
        model,
        arguments,
        rows,
        batches[first:],
        Padded(pad_id),
        checkpoints=checkpoints,
        resumed=resumed,
        context=context,
        loss=loss,
    )
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.folder))
    nn.Module.to(model, context.device)
    if trainer.state.global_step < len(batches):
        raise Interrupted(
            f"stopped as asked at step {trainer.state.global_step} of {len(batches)} on {name}, seed {seed}; the checkpoint is in "
            f"{checkpoints.folder}; run the same command again to resume"
        )
    return Trained(steps=len(batches), loss=_loss_of(trainer.state.log_history), seconds=round(trainer.seconds, 2))


class FinetuningTrainer(Trainer):
    """`transformers.Trainer` over planned batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        rows: Sequence[Row],
        batches: Sequence[npt.NDArray[np.int64]],
        collate: Padded,
        *,
        checkpoints: Checkpoints,
        resumed: Checkpoint | None,
        context: Context,
        loss: Loss | None,
    ) -> None:
        super().__init__(model=model, args=args, callbacks=[ReportProgress(context, _refuse_not_finite)])
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # the loss is the mean over the batch
        self._rows, self._batches, self._collate = rows, batches, collate
        self._checkpoints, self._loss = checkpoints, loss
        self._began = time.monotonic() - (0.0 if resumed is None else resumed.log.seconds)

    @property
    def seconds(self) -> float:
        """Since the training began, without the time in which no process was at it."""
        return time.monotonic() - self._began

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches that are left."""
        return DataLoader(
            self._rows,  # type: ignore[arg-type]  # a list is all that a dataset has to be
            batch_sampler=[batch.tolist() for batch in self._batches],
            collate_fn=self._collate,
            pin_memory=self.args.device.type == "cuda",
            # Its own generator: a loader draws from torch's global one when it starts, which would shift dropout on a resume.
            generator=torch.Generator(),
        )

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *further: Any, **settings: Any) -> Any:
        """The model's own loss, or the one that was given."""
        if self._loss is None:
            return super().compute_loss(model, inputs, *further, **settings)
        return self._loss(model, inputs)

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.args.device, non_blocking=True) for name, tensor in inputs.items()}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save under a temporary name, sync, rename: a folder `checkpoint-N` is whole, whenever the process dies."""
        step = self.state.global_step
        discard(self._checkpoints.draft)  # of a killed process
        super()._save_checkpoint(model, trial)
        self._checkpoints.publish(
            Checkpoint(
                folder=self._checkpoints.folder / f"checkpoint-{step}",
                step=step,
                processes=1,
                log=LogState(since=step, sums=[], seconds=round(self.seconds, 2)),
            ),
            best_step=None,
        )

    def _get_output_dir(self, trial: Any) -> str:
        del trial
        return str(self._checkpoints.draft)


def _refuse_not_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise StageError(
            f"the loss is {loss} at step {step}; expected a finite number; lower finetune.training.learning_rate, or set "
            "finetune.precision to float32, and run the same command again"
        )


def _loss_of(log: Sequence[dict[str, float]]) -> float:
    return next(round(entry["loss"], 5) for entry in reversed(log) if "loss" in entry)
