"""Validation while a student trains: when it is due, what it finds, and what follows from it.

The validations of a run stand in the log that its checkpoints hold, as Trainer's own would, and nothing else is remembered: which
step was the best and how long none has been better is read from there. So a resumed run judges as an uninterrupted one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.config import TrainConfig, ValidationConfig
from stages.context import Context
from stages.errors import Interrupted, SaidElsewhere, StageError
from stages.figures import LABELS
from stages.held_out import held_out_sums, means
from stages.training.processes import Processes
from storage import CacheError, CacheReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "eval_"
"""Of a held-out figure in Trainer's log: TensorBoard and the like show what begins so beside the training's own."""

Log = Sequence[Mapping[str, float]]
"""Entries of Trainer's log."""


def validations(history: Log) -> list[dict[str, float]]:
    """The validations in a log: `step` and figures."""
    return [
        {"step": entry["step"]} | {n.removeprefix(PREFIX): x for n, x in entry.items() if n.startswith(PREFIX)}
        for entry in history
        if any(name.startswith(PREFIX) for name in entry)
    ]


def is_due(config: ValidationConfig, history: Log, step: int, last_step: int) -> bool:
    """Whether the weights after `step` steps are to be validated and are not yet: one that was interrupted is made up for."""
    if config.steps is None or step == 0 or (step % config.steps and step < last_step):
        return False
    return all(entry["step"] != step for entry in validations(history))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the validations so far say of a run."""

    best_step: int | None
    """The step with the best figure, the first of equal ones; None where there is none."""
    best: float
    since: int
    """Validations since the figure last improved enough."""
    is_over: bool
    """Whether patience has run out."""


def judge(config: ValidationConfig, history: Log) -> Judgement:
    """The judgement on a run by its log. A figure that is not a number is no improvement."""
    sign = 1.0 if config.lower_is_better else -1.0
    best_step, best, enough, since = None, math.inf, math.inf, 0
    for entry in validations(history):
        value = sign * entry[config.metric]
        if value < best:
            best_step, best = int(entry["step"]), value
        since += 1
        if value < enough - config.min_delta:
            enough, since = value, 0
    is_over = config.patience is not None and since >= config.patience
    return Judgement(best_step=best_step, best=sign * best, since=since, is_over=is_over)


def kept_step(config: ValidationConfig, history: Log) -> int | None:
    """The step whose checkpoint is to stay as it may become the student; None where the last one does."""
    return judge(config, history).best_step if config.keep == "best" else None


class Validation(TrainerCallback):
    """Asks for the validations of a training where they are due, makes them, and acts on them.

    Several processes share out the batches of a validation among them. A callback after the one that ends the training where a
    stop was asked for: such a step is validated by the next start.
    """

    def __init__(self, config: TrainConfig, reader: CacheReader, context: Context, processes: Processes) -> None:
        self._config, self._reader, self._context, self._processes = config, reader, context, processes
        self._first_step = 0

    def kept_step(self, history: Log) -> int | None:
        """As the function of this name."""
        return kept_step(self._config.validation, history)

    def figures(self, student: PreTrainedModel) -> dict[str, float]:
        """Held-out figures of the student as it is; empty where a stop was asked for meanwhile.

        What keeps one process from its share ends all of them: the others raise `SaidElsewhere`.
        """
        context, error = self._context, None
        sums: list[float] = []
        stopped = False
        try:
            sums = held_out_sums(
                student,
                self._reader,
                "validation",
                batch_size=self._config.micro_batch_size,
                device=context.device,
                sequences=self._config.validation.sequences,
                rank=context.rank,
                world_size=context.world_size,
                done=lambda _: context.stop_if_asked("the next start makes up for the validation"),
            ).tolist()
        except Interrupted:
            stopped = True
        except (CacheError, StageError, OSError) as caught:
            error = caught
        asked, failed = self._processes.add(float(stopped), float(error is not None))
        if failed:
            raise SaidElsewhere if error is None else error
        return {} if asked else means(self._processes.add(*sums), self._reader.description.objective)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the step whose checkpoint is there already."""
        del args, control, kwargs
        self._first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a validation, and for the training's own losses up to it: a checkpoint may follow, which closes a log interval."""
        del args, kwargs
        if is_due(self._config.validation, state.log_history, state.global_step, state.max_steps):
            asked_to_stop = control.should_training_stop and state.global_step < state.max_steps
            # The line of the log stands there also where the validation is left to the next start.
            control.should_log, control.should_evaluate = True, not asked_to_stop

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the best, and end where it is over. Without figures a stop was asked for: what is done is kept."""
        del args, kwargs
        config, step = self._config.validation, state.global_step
        is_saved = step == self._first_step
        if not metrics:
            control.should_training_stop, control.should_save = True, not is_saved
            return
        judgement = judge(config, state.log_history)
        shown = {f"held-out {LABELS[config.metric]}": metrics[f"{PREFIX}{config.metric}"]}
        self._context.progress.advance(0, **shown)
        if judgement.is_over and step < state.max_steps:
            self._context.progress.message(
                f"stopped early at step {step:,} of {state.max_steps:,}: {config.metric} has not improved in "
                f"{judgement.since} validations (train.validation.patience); the best was {judgement.best} at step "
                f"{judgement.best_step}"
            )
        if judgement.is_over or step >= state.max_steps:
            control.should_training_stop = True
        if control.should_training_stop or self.kept_step(state.log_history) == step:
            control.should_save = not is_saved
