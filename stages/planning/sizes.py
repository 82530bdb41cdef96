"""What a cache will take on disk: exact counts times bytes measured on sequences that were really run and written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.cache_figures import shard_figures
from stages.config import PRESETS, CacheConfig, Config, to_plain
from stages.config.base import build
from stages.config.cache import RUNGS
from stages.context import Context
from stages.errors import InputError
from stages.model_config import ModelShape
from stages.planning import KEPT
from storage import CacheDescription, Layout, ShardTargets, Split, SplitDescription
from storage.size_estimate import ShardCost, merged, recoded, shard_cost

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A sample of a split, encoded as its shards will be, and the figures that a shard's manifest has."""

    layout: Layout
    arrays: Arrays
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Held:
    """A sample that holds the targets of every preset (`widest`)."""

    description: CacheDescription
    coded: Coded

    def coded_for(self, description: CacheDescription, split: Split) -> Coded:
        """The same sample as a cache of this description codes it."""
        layout = description.splits[split].layout
        arrays = recoded(self.coded.arrays, self.description.temperatures, description, layout)
        return replace(self.coded, layout=layout, arrays=arrays)


def expected_counts(config: Config, split: SplitDescription) -> dict[str, float]:
    """`sequences`, `tokens` and `rows` (cached positions) of a split over all its variants.

    Rows are expected values where chance decides: a share of the tokens is masked, and of the others a share sampled.
    """
    layout = split.layout  # only the train split's positions may be fewer than all
    masked = 0.0 if config.teacher.objective == "causal" else config.masking.probability
    sampled = masked + layout.position_fraction * (1 - masked)
    tokens = split.tokens * split.variants
    rows = tokens * {"all": 1.0, "masked": masked, "sampled": sampled}[layout.positions]
    return {"sequences": split.sequences * split.variants, "tokens": tokens, "rows": rows}


def encode_sample(targets: Iterable[ShardTargets], description: CacheDescription, layout: Layout) -> Coded:
    """Encode pieces as they come and put them together. Raises `InputError` for a teacher that gives NaN or infinity."""
    parts: list[Arrays] = []
    figures: dict[str, Any] = {}
    for piece in targets:
        if not np.isfinite(piece.stat).all():
            raise InputError(
                "the teacher gives logits that are not finite (NaN or infinity) on the sample: no cache can be made of them; "
                "look at models/teacher, and at cache.precision"
            )
        if not figures:
            rows = slice(None) if piece.row_token is None else piece.row_token
            figures = shard_figures(piece, piece.masked[rows] == 1, description.temperatures)
        parts.append(piece.encode(description, layout))
    return Coded(layout=layout, arrays=merged(parts), figures=figures)


def preset_caches(config: Config) -> dict[str, CacheConfig]:
    """Each preset with the positions of the configuration, and nothing else set beside it."""
    found = {}
    for name, preset in PRESETS.items():
        temperatures = [*config.cache.temperatures, preset.draw_temperature]  # 1, where there are no draws
        own = dict.fromkeys(("hidden", "logits", "top_k", *RUNGS)) | {
            "position_fraction": config.cache.position_fraction
        }
        values = {**to_plain(config.cache), **own, "preset": name, "temperatures": temperatures}
        found[name] = build(CacheConfig, values, "cache")
    return found


def described(cache: CacheConfig, description: CacheDescription) -> CacheDescription:
    """The same plan with the layouts of other parameters; `top_k` is cut down to the vocabulary."""
    splits = {}
    for split, plan in description.splits.items():
        layout = cache.layout(
            split,
            teacher_layers=ModelShape.of(description.teacher_config).layers,
            hidden_size=description.hidden_size,
            vocabulary_size=description.vocabulary_size,
        )
        splits[split] = replace(plan, layout=replace(layout, top_k=min(layout.top_k, description.vocabulary_size)))
    return replace(description, temperatures=cache.declared_temperatures, splits=splits)


def widest(descriptions: Iterable[CacheDescription], split: Split) -> CacheDescription:
    """A cache of one split that holds the targets of all these, in float32: the largest of each, for `recoded`."""
    descriptions = list(descriptions)
    plans = [description.splits[split] for description in descriptions]
    layouts = [plan.layout for plan in plans]
    (lossless,) = {layout for layout in layouts if layout.hidden == "float32"}
    drawn = max(layouts, key=lambda layout: layout.draws)  # one preset draws
    layout = replace(
        lossless,
        top_k=max(layout.top_k for layout in layouts),
        draws=drawn.draws,
        draw_temperature=drawn.draw_temperature,
    )
    temperatures = tuple(sorted({t for description in descriptions for t in description.temperatures}))
    return replace(descriptions[0], temperatures=temperatures, splits={split: replace(plans[0], layout=layout)})


def weigh_cache(
    folder: Path,
    context: Context,
    description: CacheDescription,
    train: Coded,
    held: Mapping[Split, Held],
) -> dict[Split, ShardCost]:
    """What the shards of each split cost as configured: `train` is coded so, the yardsticks are recoded."""
    costs: dict[Split, ShardCost] = {"train": _weigh(folder, context, description, "train", train)}
    for split in description.splits:
        if split != "train":
            costs[split] = _weigh(folder, context, description, split, held[split].coded_for(description, split))
    return costs


def weigh_presets(
    folder: Path, context: Context, presets: Mapping[str, CacheDescription], held: Mapping[Split, Held]
) -> dict[str, dict[Split, ShardCost]]:
    """The same of each preset. The yardsticks of most are the same: those are weighed once."""
    known: dict[tuple[Split, Layout, tuple[float, ...]], ShardCost] = {}
    costs: dict[str, dict[Split, ShardCost]] = {}
    for name, description in presets.items():
        costs[name] = {}
        for split, plan in description.splits.items():
            key = split, plan.layout, description.temperatures
            if key not in known:
                coded = held[split].coded_for(description, split)
                known[key] = _weigh(folder, context, description, split, coded)
            costs[name][split] = known[key]
    return costs


def _weigh(folder: Path, context: Context, description: CacheDescription, split: Split, coded: Coded) -> ShardCost:
    context.stop_if_asked(KEPT)
    return shard_cost(folder, description, split, coded.layout, coded.arrays, coded.figures)


def split_size(config: Config, description: CacheDescription, split: Split, cost: ShardCost) -> dict[str, Any]:
    """What a split will hold, and its bytes, as plain JSON."""
    plan = description.splits[split]
    counts = expected_counts(config, plan)
    shards = len(plan.shards) * plan.variants
    rows = max(1.0, counts["rows"])
    return {
        "sequences": plan.sequences,
        "tokens": plan.tokens,
        "variants": plan.variants,
        "positions": round(counts["rows"]),
        "shards": shards,
        "bytes": cost.total(counts, shards),
        "bytes_per_position": {
            **{name: round(size / rows, 3) for name, size in cost.by_array(counts).items()},
            "metadata": round(shards * cost.fixed_bytes / rows, 3),
        },
    }


def cache_bytes(config: Config, description: CacheDescription, costs: Mapping[Split, ShardCost], beside: int) -> int:
    """Bytes of a whole cache: shards of all splits, and `beside` of what it holds once."""
    sizes = (split_size(config, description, split, cost)["bytes"] for split, cost in costs.items())
    return int(sum(sizes)) + beside
