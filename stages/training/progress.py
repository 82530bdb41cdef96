"""What a person sees of a training, and how one is stopped."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.context import Context
from stages.errors import StageError
from stages.training.distiller import PARTS


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
