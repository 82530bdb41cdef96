"""Where a training reports to beside its own files, through the callbacks that transformers' Trainer has for them.

`machine.report_to` names them; no tracker is imported, and nothing is sent anywhere, unless it is named there. They write below
`runs/`, a folder each for all runs. What DVC knows of the project is not theirs to change.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    DVCLiveCallback,
    MLflowCallback,
    TensorBoardCallback,
    WandbCallback,
)

from stages.config import Config, to_plain
from stages.config.training import Tracker
from stages.context import Context
from stages.errors import ConfigError, StageError
from stages.training.run import TrainingRun


def require_trackers(names: Iterable[Tracker]) -> None:
    """Raise `ConfigError` for a tracker whose Python package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"machine.report_to is {name!r}, which is not installed; allowed: what is; run: pip install {name}"
            )


def open_trackers(config: Config, context: Context, run: TrainingRun, first_step: int) -> list[TrainerCallback]:
    """The callbacks of the trackers of `machine.report_to`; none in the processes beside the first.

    Raises `StageError` where a tracker does not start.
    """
    if context.rank != 0:
        return []
    parameters = {"train": to_plain(config.train), "run_fingerprint": run.fingerprint}
    return [
        callback
        for name in config.machine.report_to
        for callback in _OPEN[name](context.artefacts.tracker(name), run, first_step, parameters)
    ]


Callbacks = list[TrainerCallback]


def _tensorboard(folder: Path, run: TrainingRun, first_step: int, parameters: dict[str, Any]) -> Callbacks:
    tensorboard = importlib.import_module("torch.utils.tensorboard")
    # What a killed process wrote after its last checkpoint comes again.
    writer = tensorboard.SummaryWriter(str(folder / run.name), purge_step=first_step + 1)
    writer.add_text("parameters", f"```\n{json.dumps(parameters, indent=2)}\n```")
    return [TensorBoardCallback(writer)]  # type: ignore[no-untyped-call]  # as those below: transformers leaves them untyped


def _wandb(folder: Path, run: TrainingRun, first_step: int, parameters: dict[str, Any]) -> Callbacks:
    del first_step
    wandb = importlib.import_module("wandb")
    folder.mkdir(parents=True, exist_ok=True)
    try:  # one run however often it is resumed; WANDB_PROJECT and WANDB_MODE are the user's
        wandb.init(name=run.name, id=run.fingerprint[:16], resume="allow", dir=str(folder), config=parameters)
    except wandb.errors.Error as error:
        raise StageError(
            f"wandb (machine.report_to) does not start: {error}; run `wandb login`, set WANDB_MODE=offline, or take it out"
        ) from error
    return [WandbCallback(), _AtEnd(wandb.finish)]  # type: ignore[no-untyped-call]


def _mlflow(folder: Path, run: TrainingRun, first_step: int, parameters: dict[str, Any]) -> Callbacks:
    del run, first_step, parameters  # the callback begins the run, with its name and arguments
    mlflow = importlib.import_module("mlflow")
    if not mlflow.is_tracking_uri_set():  # else MLFLOW_TRACKING_URI says where to
        folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")  # it takes no plain folder any more
    return [MLflowCallback()]  # type: ignore[no-untyped-call]


def _dvclive(folder: Path, run: TrainingRun, first_step: int, parameters: dict[str, Any]) -> Callbacks:
    # By name, as the others: it is a tracker here, and what it knows of DVC is turned off. It would edit dvc.yaml and
    # make an experiment of every training.
    live = importlib.import_module("dvclive").Live(
        dir=str(folder / run.name), resume=first_step > 0, report=None, save_dvc_exp=False, dvcyaml=None
    )
    live.log_params(parameters)
    return [_StepOf(live), DVCLiveCallback(live)]


class _AtEnd(TrainerCallback):
    """Ends a tracker's run with the training: the next one of a comparison is another run."""

    def __init__(self, finish: Callable[[], object]) -> None:
        self._finish = finish

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        del args, state, control, kwargs
        self._finish()


class _StepOf(TrainerCallback):
    """Has DVCLive count optimizer steps, not entries of the log."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        del args, control, kwargs
        self._live.step = state.global_step


_OPEN: dict[Tracker, Callable[[Path, TrainingRun, int, dict[str, Any]], Callbacks]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "dvclive": _dvclive,
}
