"""Parameters of the losses on what lies inside of teacher and student: states of layers, vectors of self-attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.config.base import refuse, require
from storage.layout import PARTS, PartName

if TYPE_CHECKING:
    from stages.config.cache import CacheConfig
    from stages.config.training import TrainConfig

Pairs = tuple[tuple[int, ...], ...]
"""Of the student's and the teacher's layers or blocks: `[[student, teacher], ...]`."""


@dataclass(frozen=True, kw_only=True)
class RelationsConfig:
    """MiniLMv2's self-attention relations: which vectors of which blocks are compared, and in how many heads."""

    heads: int
    """Relation heads, which both widths are cut into: neither's attention heads have to be as many. MiniLMv2: 48 for 768."""
    student_block: int | None = None
    """Counted from 1; null: the last one."""
    teacher_block: int | None = None
    """One of `cache.attention_layers`; null: the last of them. MiniLMv2: the last of 12, the 21st of 24."""
    parts: tuple[PartName, ...] | None = None
    """null: all three."""

    def __post_init__(self) -> None:
        require(self.heads >= 1, "train.relations.heads", self.heads, "1 or more")
        for name in ("student_block", "teacher_block"):
            block = getattr(self, name)
            require(block is None or block >= 1, f"train.relations.{name}", block, "null or 1 and more")
        require(
            self.parts is None or 0 < len(self.parts) == len(set(self.parts)),
            "train.relations.parts",
            None if self.parts is None else list(self.parts),
            "null, or one or more, each once",
        )

    @property
    def compared(self) -> tuple[PartName, ...]:
        """The parts whose relations are learned from."""
        return self.parts or PARTS


def check_inner_losses(train: TrainConfig) -> None:
    """Refuse settings of `train` that contradict each other, whatever the cache. Raises `ConfigError`."""
    weights = train.weights
    _check_pairs("layer_map", train.layer_map, 0)
    _check_pairs("attention_map", train.attention_map, 1)
    require(
        weights.relations == 0 or train.relations is not None,
        "train.relations",
        None,
        f"its settings ({{heads: 48}}, or as many as divide both widths), as train.weights.relations is {weights.relations}",
    )
    require(
        weights.attention == 0 or train.attention_map is not None,
        "train.attention_map",
        None,
        f"[[student block, teacher block], ...], as train.weights.attention is {weights.attention}",
    )
    inside = [
        name
        for name, is_read in (
            ("train.layer_map", train.layer_map is not None and train.reads_states),
            ("train.weights.relations", weights.relations > 0),
            ("train.weights.attention", weights.attention > 0),
        )
        if is_read
    ]
    require(
        not (train.compile and inside),
        "train.compile",
        True,
        f"false with {' and '.join(inside)}: what lies inside of a compiled encoder cannot be read",
    )


def check_inner_targets(train: TrainConfig, cache: CacheConfig) -> None:
    """Refuse losses on layers and vectors that are not cached, as far as that shows without the teacher. Raises `ConfigError`."""
    if train.weights.hidden > 0 and cache.train_hidden == "none":
        raise refuse(
            "train.weights.hidden",
            train.weights.hidden,
            "0, as cache.hidden is none: no hidden state is cached",
        )
    layers = train.teacher_layers
    if cache.hidden_layers is not None:
        _check_cached("train.layer_map", layers, cache.hidden_layers, "cache.hidden_layers")
    else:
        require(
            len(layers) <= 1,
            "train.layer_map",
            _plain(train.layer_map),
            "pairs with the teacher's last layer, as cache.hidden_layers is null: no other is cached; to learn from others, "
            f"make a cache with cache.hidden_layers: {list(layers)}",
        )
    parts = train.attention_parts
    if not parts:
        return
    term = "relations" if train.weights.relations > 0 else "attention"
    cached = cache.attention_vectors or ()
    lacking = [part for part in parts if part not in cached]
    require(
        not lacking,
        f"train.weights.{term}",
        getattr(train.weights, term),
        f"0, as {' and '.join(lacking)} are not cached; to learn from them, make a cache with cache.attention_vectors: "
        f"[{', '.join(part for part in PARTS if part in {*parts, *cached})}]"
        + (
            f", or compare those that are: train.relations.parts: [{', '.join(cached)}]"
            if cached and term == "relations"
            else ""
        ),
    )
    if cache.attention_layers is not None:
        for key, blocks in _teacher_blocks(train):
            _check_cached(key, blocks, cache.attention_layers, "cache.attention_layers")


def check_inner_layers(train: TrainConfig, cache: CacheConfig, teacher_layers: int) -> None:
    """Refuse what is not cached where only the teacher's last layer is, which the parameters do not name. Raises `ConfigError`."""
    if cache.hidden_layers is None:
        _check_cached(
            "train.layer_map", train.teacher_layers, (teacher_layers,), "cache.hidden_layers (null: the last)"
        )
    if cache.attention_layers is None:
        for key, blocks in _teacher_blocks(train):
            _check_cached(key, blocks, (teacher_layers,), "cache.attention_layers (null: the last)")


def check_inner_shapes(
    train: TrainConfig,
    *,
    student: str,
    attends: bool,
    layers: int,
    hidden_size: int,
    attention_heads: int | None,
    teacher_hidden_size: int,
    teacher_attention_heads: int | None,
) -> None:
    """Refuse losses that a student of this shape does not fit. Raises `ConfigError` naming the key, and what to do.

    `attention_heads` are None where a family knows none. The widths of an ensemble's teachers are `check_ensemble_widths`' business.
    """
    weights = train.weights
    for term in ("relations", "attention"):
        weight = getattr(weights, term)
        require(
            weight == 0 or attends, f"train.weights.{term}", weight, f"0, as students.{student} has no self-attention"
        )
    if train.reads_states and not train.hidden_projection and train.ensemble is None:
        term = "cos" if weights.cos > 0 else "hidden"
        require(
            hidden_size == teacher_hidden_size,
            f"students.{student}.hidden_size",
            hidden_size,
            f"{teacher_hidden_size} (the teacher's) or null, as train.weights.{term} is {getattr(weights, term)}; or "
            "train.hidden_projection: true, a learned map between the two widths",
        )
    if train.reads_states:
        _check_student("train.layer_map", [ours for ours, _ in train.layer_map or ()], 0, layers)
    if weights.relations > 0 and train.relations is not None:
        block, heads = train.relations.student_block, train.relations.heads
        _check_student("train.relations.student_block", [] if block is None else [block], 1, layers)
        require(
            hidden_size % heads == 0 and teacher_hidden_size % heads == 0,
            "train.relations.heads",
            heads,
            f"a divisor of both widths, the student's {hidden_size} and the teacher's {teacher_hidden_size}",
        )
    if weights.attention > 0:
        _check_student("train.attention_map", [ours for ours, _ in train.attention_map or ()], 1, layers)
        require(
            attention_heads == teacher_attention_heads,
            f"students.{student}.attention_heads",
            attention_heads,
            f"{teacher_attention_heads} (the teacher's), as train.weights.attention is {weights.attention}: head is compared "
            "with head; train.weights.relations compares as many as train.relations.heads says",
        )


def _check_pairs(name: str, pairs: Pairs | None, least: int) -> None:
    fine = pairs is None or (
        len(pairs) > 0
        and all(len(pair) == 2 and min(pair) >= least for pair in pairs)
        and len(set(pairs)) == len(pairs)
    )
    counted = "layers, 0 for the embeddings and n for the n-th block" if least == 0 else "blocks, counted from 1"
    require(fine, f"train.{name}", _plain(pairs), f"null, or pairs [student, teacher] of {counted}, each once")


def _teacher_blocks(train: TrainConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Keys of `train` and the teacher's blocks that they name, as far as a loss reads them."""
    found: list[tuple[str, tuple[int, ...]]] = []
    if train.weights.relations > 0 and train.relations is not None and train.relations.teacher_block is not None:
        found.append(("train.relations.teacher_block", (train.relations.teacher_block,)))
    if train.weights.attention > 0:
        found.append(("train.attention_map", tuple(theirs for _, theirs in train.attention_map or ())))
    return found


def _check_cached(key: str, named: tuple[int, ...], cached: tuple[int, ...], where: str) -> None:
    lacking = sorted(set(named) - set(cached))
    if lacking:
        raise refuse(
            key,
            lacking[0] if len(lacking) == 1 else lacking,
            f"of the teacher's, those in {where}: {', '.join(map(str, cached))}; to learn from others, make a cache with them",
        )


def _check_student(key: str, named: list[int], least: int, layers: int) -> None:
    beyond = [number for number in named if number > layers]
    if beyond:
        raise refuse(key, beyond[0], f"of the student's, {least} to {layers}, its number of blocks")


def _plain(pairs: Pairs | None) -> list[list[int]] | None:
    return None if pairs is None else [list(pair) for pair in pairs]
