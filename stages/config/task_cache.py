"""The part of the parameters that is the identity of a downstream task's cache."""

from __future__ import annotations

from typing import Any

from stages.config import Config
from stages.config.base import to_plain
from stages.config.finetune import FinetuneConfig, TaskKind, TaskTraining
from stages.errors import ConfigError
from storage import HiddenName

ALGORITHMS = {"task_targets": 1}
"""Raised by hand when a change of code changes what is cached for the same parameters."""
_AS_THEY_ARE = ("shard_tokens", "precision", "attention")
_OF_THE_EXAMPLES = ("held_out", "validation", "train_examples")


def finetuning(config: Config) -> FinetuneConfig:
    """The section `finetune`. Raises `ConfigError` where there is none."""
    if config.finetune is None:
        raise ConfigError(
            "finetune is missing in params.yaml; expected its tasks, seeds and training (docs/finetuning.md), as in "
            "recipes/distilbert/params.yaml"
        )
    return config.finetune


def hidden_of(config: Config) -> HiddenName:
    """How hidden states of a task are coded: not at all unless `cache.hidden` asks for them, whatever the preset says."""
    return config.cache.hidden or "none"


def encoding_of(kind: TaskKind, training: TaskTraining) -> dict[str, Any]:
    """The parameters that say how an example becomes an input."""
    windows = {"overlap_tokens": training.overlap_tokens} if kind == "SQuAD" else {}
    return {"kind": kind, "max_tokens": training.max_tokens, **windows}


def task_spec(config: Config, name: str) -> dict[str, Any]:
    """The parameters that determine the cached answers to a task, as plain JSON: one half of the cache's identity.

    Where the examples come from is left out: their digests are in the other half.
    """
    settings = finetuning(config)
    task, cache, hidden = to_plain(settings.tasks[name]), to_plain(config.cache), hidden_of(config)
    layers = {} if hidden == "none" else {key: cache[key] for key in ("hidden_layers", "hidden_group")}
    return {
        "task": {
            "name": name,
            **encoding_of(settings.kind_of(name), settings.training_of(name)),
            **{key: task[key] for key in _OF_THE_EXAMPLES if task.get(key) is not None},
        },
        "cache": {**{key: cache[key] for key in _AS_THEY_ARE}, "hidden": hidden, **layers},
        "algorithms": ALGORITHMS,
    }
