"""How a cache's targets are coded, in words: for the model card and the report."""

from __future__ import annotations

from collections.abc import Iterable

from stages.config import CacheConfig


def coding_of(cache: CacheConfig) -> tuple[tuple[str, str], ...]:
    """Names and values of what is kept of each position of the train split, for people."""
    rungs = cache.rungs
    hidden, logits, positions = str(cache.train_hidden), str(cache.train_logits), str(cache.positions)
    if hidden == "int8":
        group = rungs["hidden_group"]
        hidden += ", one scale per row" if group == "row" else f" in groups of {group}"
    if cache.hidden_layers is not None:
        hidden += f", layers {_listed(cache.hidden_layers)}"
    if logits == "grid":
        logits = f"on a grid of {rungs['grid_step']:g} nats"
    if logits != "none" and rungs["selection"] == "threshold":
        logits += (
            f", p >= {rungs['threshold']:g} at T = {rungs['threshold_temperature']:g}, at most {cache.train_top_k}"
        )
    elif logits != "none":
        logits += f", top {cache.train_top_k}"
    if positions == "sampled":
        positions = f"masked, and {rungs['position_fraction']:.0%} of the others"
    words = [("hidden states", hidden), ("logits", logits), ("positions", positions)]
    if cache.attention_vectors is not None:
        of_blocks = "the last block" if cache.attention_layers is None else f"blocks {_listed(cache.attention_layers)}"
        words.append(
            (
                "vectors of attention",
                f"{_listed(cache.attention_vectors)} of {of_blocks}, {rungs['attention_coding']}",
            )
        )
    if not cache.train_draws:
        return tuple(words)
    where = "the whole distribution" if rungs["draw_from"] == "all" else "outside the cached ids"
    return (*words, ("draws", f"{cache.train_draws} from {where} at T = {rungs['draw_temperature']:g}"))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
