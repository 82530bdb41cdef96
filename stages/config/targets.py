"""Whether a cache of these parameters holds what a training with these parameters reads."""

from __future__ import annotations

from typing import Literal

from stages.config.base import require
from stages.config.cache import CacheConfig
from stages.config.layers import check_inner_layers, check_inner_targets
from stages.config.training import TrainConfig


def check_objective(train: TrainConfig, objective: Literal["masked", "causal"]) -> None:
    """Refuse losses on tokens that a teacher of this objective was not asked for. Raises `ConfigError`."""
    if objective == "causal":
        reason = "as teacher.objective is causal: nothing is masked"
        require(
            train.weights.mlm == 0,
            "train.weights.mlm",
            train.weights.mlm,
            f"0, {reason}; the next token is predicted with train.weights.clm",
        )
        for name in ("kd_positions", "cos_positions"):
            require(getattr(train, name) == "all", f"train.{name}", getattr(train, name), f"all, {reason}")
    else:
        require(
            train.weights.clm == 0,
            "train.weights.clm",
            train.weights.clm,
            "0, as teacher.objective is masked: no token is predicted from those before it alone; the masked ones are "
            "predicted with train.weights.mlm",
        )


def check_targets(train: TrainConfig, cache: CacheConfig) -> None:
    """Refuse losses whose targets are not cached. Raises `ConfigError`, naming the key of `train` and the reason."""
    if cache.train_hidden == "none":
        require(
            train.weights.cos == 0,
            "train.weights.cos",
            train.weights.cos,
            "0, as cache.hidden is none: no hidden state is cached",
        )
    check_inner_targets(train, cache)
    if train.weights.mse > 0:
        _check_mse(train, cache)
    if train.weights.kd == 0:
        return
    if train.kd_source == "hidden":
        instead = [
            name for name, cached in (("top_k", cache.train_logits != "none"), ("draws", _all_drawn(cache))) if cached
        ]
        require(
            cache.train_hidden != "none",
            "train.kd_source",
            "hidden",
            f"{' or '.join(instead)}, as cache.hidden is none: no hidden state is cached",
        )
    if train.kd_source == "top_k":
        require(
            cache.train_logits != "none",
            "train.kd_source",
            "top_k",
            f"{'hidden' if cache.train_hidden != 'none' else 'draws'}, as cache.logits is none: no logits are cached",
        )
        declared = cache.declared_temperatures
        require(
            train.temperature in declared,
            "train.temperature",
            train.temperature,
            f"one of cache.temperatures ({', '.join(map(str, declared))}), as train.kd_source is top_k",
        )
    if train.reads_draws:
        _check_draws(train, cache)


def check_teacher_layers(train: TrainConfig, cache: CacheConfig, teacher_layers: int) -> None:
    """Refuse losses that read layers or blocks of a teacher of so many blocks that are not cached. Raises `ConfigError`."""
    check_inner_layers(train, cache, teacher_layers)
    layers = cache.hidden_layers
    require(
        layers is None or layers[-1] == teacher_layers or not train.reads_last_hidden,
        "cache.hidden_layers",
        list(layers or ()),
        f"a list that ends in {teacher_layers}, the teacher's last layer, which train.kd_source: hidden reads, and the cosine loss "
        "unless train.layer_map names others",
    )


def _check_mse(train: TrainConfig, cache: CacheConfig) -> None:
    """Squared differences need the teacher's logits at every id."""
    mse = train.weights.mse
    require(
        cache.train_hidden != "none",
        "train.weights.mse",
        mse,
        "0, as cache.hidden is none: the teacher's logits at every id are rebuilt from its hidden state",
    )
    require(
        train.kd_source == "hidden",
        "train.weights.mse",
        mse,
        f"0, as train.kd_source is {train.kd_source}: only hidden gives the teacher's logits at every id",
    )


def _all_drawn(cache: CacheConfig) -> bool:
    return cache.train_draws > 0 and cache.rungs["draw_from"] == "all"


def _check_draws(train: TrainConfig, cache: CacheConfig) -> None:
    key = "train.kd_source" if train.kd_source == "draws" else "train.tail"
    drawn_from = "all" if train.kd_source == "draws" else "tail"
    found = cache.rungs["draw_from"] if cache.train_draws else "nothing"
    now = "none are cached now" if found == "nothing" else f"those cached now are from {found}"
    require(
        found == drawn_from,
        key,
        "draws",
        f"another value, or cache.draws above 0 with cache.draw_from {drawn_from} ({now})",
    )
    temperature = cache.rungs["draw_temperature"]
    require(
        train.temperature == temperature,
        "train.temperature",
        train.temperature,
        f"{temperature}, as {key} is draws and cache.draw_temperature is {temperature}",
    )
