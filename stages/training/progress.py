"""What a person sees of a training, and how one is stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.context import Context


class ReportProgress(TrainerCallback):
    """Shows steps and losses, and turns a request to stop into a checkpoint and the end of the training.

    `check` is given each loss that is logged and its step, and raises where that is no number. `should_stop`: None is the
    context's; processes that train together have one answer. `shown`: entries of the log to stand beside the bar.
    """

    def __init__(
        self,
        context: Context,
        check: Callable[[float, int], None],
        *,
        should_stop: Callable[[], bool] | None = None,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        self._context, self._check, self._shown = context, check, shown
        self._should_stop = should_stop or context.should_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step; save and end where a stop was asked for."""
        del args, kwargs
        self._context.progress.advance(1)
        if self._should_stop() and state.global_step < state.max_steps:
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
            self._check(logs["loss"], state.global_step)
            self._context.progress.advance(0, **{name: round(logs[name], 4) for name in self._shown if name in logs})
