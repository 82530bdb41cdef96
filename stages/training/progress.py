"""What a person sees of a training, and how one is stopped."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.context import Context
from stages.training.log import LOSSES, refuse_not_finite
from stages.training.processes import Processes


class ReportProgress(TrainerCallback):
    """Shows steps and losses, and turns a request to stop into a checkpoint and the end of the training."""

    def __init__(self, context: Context, processes: Processes) -> None:
        self._context, self._processes = context, processes

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; save and end where a stop was asked for, of whichever process: all of them save the same step."""
        del args, kwargs
        self._context.progress.advance(1)
        if self._processes.any(self._context.should_stop()) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps:
            control.should_log = True  # what was done since the last line

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
            refuse_not_finite(logs["loss"], state.global_step, self._processes)
            shown = {name: round(logs[name], 4) for name in LOSSES if name in logs}
            self._context.progress.advance(0, **shown)
