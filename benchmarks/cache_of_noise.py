"""A cache in a teacher's shapes and a preset's codecs, of random numbers: for benchmarks of reading and writing.

Normally distributed hidden states and logits compress as real ones do (hidden states hardly at all), and no teacher has
to run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import CacheDescription, CacheWork, Layout, ShardId, ShardTargets, Split, SplitDescription

BALANCED = Layout(positions="all", hidden="int8", hidden_layers=(12,), logits="grid", top_k=32)
SMALL = Layout(positions="all", hidden="none", hidden_layers=(), logits="grid", top_k=8, draws=50, draw_temperature=2.0)
TEMPERATURES = (1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """BERT-base's, unless told otherwise."""

    shards: int
    sequences_per_shard: int
    sequence_tokens: int = 128
    hidden_size: int = 768
    vocabulary_size: int = 30_522

    @property
    def tokens_per_shard(self) -> int:
        return self.sequences_per_shard * self.sequence_tokens


def describe(shapes: Shapes, layout: Layout = BALANCED) -> CacheDescription:
    """The cache that `build` makes."""
    sequences = shapes.shards * shapes.sequences_per_shard
    train = SplitDescription(
        layout=layout,
        variants=1,
        sequences=sequences,
        tokens=sequences * shapes.sequence_tokens,
        shards=tuple((n * shapes.sequences_per_shard, shapes.sequences_per_shard) for n in range(shapes.shards)),
    )
    splits: dict[Split, SplitDescription] = {"train": train}
    return CacheDescription(
        spec={"benchmark": "noise"},
        content={},
        temperatures=TEMPERATURES,
        vocabulary_size=shapes.vocabulary_size,
        hidden_size=shapes.hidden_size,
        special_tokens={"pad": 0, "mask": 103},
        teacher_config={},
        splits=splits,
    )


def targets(description: CacheDescription, shapes: Shapes, shard: ShardId) -> ShardTargets:
    """Targets of one shard of a layout with top-k logits, for all positions or the masked ones."""
    layout = description.splits[shard.split].layout
    generator = np.random.default_rng(shard.number)
    tokens, k = shapes.tokens_per_shard, layout.top_k
    ids = generator.zipf(1.2, tokens) % description.vocabulary_size
    masked = (generator.random(tokens) < 0.15).astype(np.uint8)
    row_token = None if layout.positions == "all" else np.flatnonzero(masked).astype(np.uint32)
    rows = tokens if row_token is None else len(row_token)
    # Descending by gaps as a softmax has them: large at the top, small below.
    gaps = generator.exponential(1.0, (rows, k)).astype(np.float32) / np.arange(1, k + 1, dtype=np.float32)
    logits = 12 - np.cumsum(gaps + np.float32(1e-4), axis=1, dtype=np.float32)  # no two are equal
    logsumexp = np.stack([np.log(np.exp(logits / t).sum(1)) + 0.1 for t in TEMPERATURES], 1)
    entropy = generator.random((rows, len(TEMPERATURES))) + 1
    stat = [logits[:, 0], *(column for i in range(len(TEMPERATURES)) for column in (logsumexp[:, i], entropy[:, i]))]
    states = (rows, len(layout.hidden_layers), description.hidden_size)
    hidden = None if layout.hidden == "none" else generator.standard_normal(states, np.float32)
    return ShardTargets(
        sequence_offsets=np.arange(0, tokens + 1, shapes.sequence_tokens, dtype=np.uint32),
        original_ids=ids,
        input_ids=np.where(masked == 1, 103, ids),
        masked=masked,
        row_token=row_token,
        stat=np.stack(stat, 1).astype(np.float32),
        top_ids=different_ids(generator, rows, k, description.vocabulary_size),
        top_logits=logits,
        hidden=hidden,
        **(draws(generator, rows, description.vocabulary_size, layout.draws) if layout.draws else {}),
    )


def draws(generator: np.random.Generator, rows: int, vocabulary_size: int, number: int) -> dict[str, NDArray[Any]]:
    """So many draws per row, of which 8 to 33 are different: as many as a teacher's are on unmasked and on masked tokens."""
    count = generator.integers(8, 34, rows)
    inside = np.arange(33) < count[:, None]
    ids = np.where(inside, different_ids(generator, rows, 33, vocabulary_size), vocabulary_size)
    ids.sort(axis=1)
    weight = np.ones(ids.shape, np.uint8)
    weight[:, 0] += (number - count).astype(np.uint8)
    return {"draw_count": count.astype(np.uint8), "draw_ids": ids[inside], "draw_weight": weight[inside]}


def different_ids(generator: np.random.Generator, rows: int, k: int, vocabulary_size: int) -> NDArray[np.int64]:
    """(rows, k) ids without order, no two in a row equal; as in text, half of them are frequent ones (a quarter of the ids).

    Each half steps through its range, from a start and by a step of its own; the step shares no factor with the range.
    """
    frequent = vocabulary_size // 4
    columns = []
    for low, size, count in ((0, frequent, k // 2), (frequent, vocabulary_size - frequent, k - k // 2)):
        steps = np.array([step for step in range(1, size) if math.gcd(step, size) == 1])
        start, step = generator.integers(0, size, (rows, 1)), generator.choice(steps, (rows, 1))
        columns.append(low + (start + step * np.arange(count)) % size)
    return np.concatenate(columns, 1)[:, generator.permutation(k)]


def build(folder: Path, shapes: Shapes, layout: Layout = BALANCED) -> Path:
    """A finished cache at `folder / "current"`; its path."""
    description = describe(shapes, layout)
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    (tokenizer / "vocab.txt").write_text("[PAD]\n")
    with CacheWork.open(folder / "work", description) as work:
        work.add_folder("tokenizer", tokenizer)
        work.add_file("head.json", b"{}\n")
        work.add_file("head.safetensors", b"")
        for shard in work.missing():
            work.publish(shard, targets(description, shapes, shard), {}, {})
        work.finish(folder / "current")
    return folder / "current"
