"""A project folder in BERT-base's shapes for benchmarks of stage one: random weights and random token ids serve for speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, set_seed

from pipeline.params import read_config
from stages.cache_description import cut_into_shards
from stages.config import Config, cache_spec
from stages.context import Artefacts
from stages.models import load_masked_lm, weights_digest
from stages.sequences import (
    COUNTS,
    TOKENIZER,
    SequenceSplit,
    SequenceWriter,
    SplitFigures,
    TokenStore,
    write_description,
)
from storage import SPLITS, CacheDescription, SplitDescription

SPECIAL = {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}


@dataclass(frozen=True, kw_only=True)
class TeacherShapes:
    """BERT-base's, unless told otherwise."""

    shards: int = 3
    shard_tokens: int = 4096
    longest: int = 128
    layers: int = 12
    hidden_size: int = 768
    vocabulary_size: int = 30_522

    @classmethod
    def quick(cls) -> TeacherShapes:
        """Shapes that only show that a benchmark runs."""
        return cls(shards=2, shard_tokens=256, longest=32, layers=2, hidden_size=64, vocabulary_size=2000)


def build(folder: Path, shapes: TeacherShapes) -> Artefacts:
    """`models/teacher` and `data/tokens` in a project folder; sequences of one document each, so of different lengths."""
    artefacts = Artefacts(project=folder)
    set_seed(0)
    config = BertConfig(
        vocab_size=shapes.vocabulary_size,
        hidden_size=shapes.hidden_size,
        num_hidden_layers=shapes.layers,
        num_attention_heads=max(1, shapes.hidden_size // 64),
        intermediate_size=4 * shapes.hidden_size,
    )
    BertForMaskedLM(config).save_pretrained(artefacts.teacher)
    tokens = artefacts.tokens
    (tokens / TOKENIZER).mkdir(parents=True)
    (tokens / TOKENIZER / "README").write_text("ids are random: there is no tokenizer\n", encoding="utf-8")
    random = np.random.default_rng(0)
    splits = {}
    for split in SPLITS:
        wanted = shapes.shards * shapes.shard_tokens if split == "train" else 1
        # Half of the documents fill a sequence, as long ones do; the others are shorter.
        drawn = random.integers(shapes.longest // 4, 2 * shapes.longest, size=max(1, 4 * wanted // shapes.longest))
        lengths = np.minimum(drawn, shapes.longest)
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), wanted)) + 1]
        with SequenceWriter(tokens / f"{split}.parquet", np.dtype(np.uint16)) as writer:
            ids = random.integers(max(SPECIAL.values()) + 1, shapes.vocabulary_size, int(lengths.sum()))
            writer.write_group(lengths, ids.astype(np.uint16))
        splits[split] = SplitFigures(
            sequences=len(lengths),
            tokens=int(lengths.sum()),
            longest=int(lengths.max()),
            sha256=SequenceSplit(tokens / f"{split}.parquet").digest(),
        )
    counts = np.ones(shapes.vocabulary_size, np.int64)
    pq.write_table(pa.table({"count": counts}), tokens / COUNTS)
    write_description(
        tokens,
        vocabulary_size=shapes.vocabulary_size,
        special_tokens=dict(SPECIAL),
        special_ids=tuple(sorted(SPECIAL.values())),
        splits=splits,
    )
    return artefacts


def configured(overrides: Sequence[str]) -> Config:
    """The project's own params.yaml with some values changed, as `-S` changes them."""
    return read_config(Path(__file__).parents[1] / "params.yaml", overrides)


def describe(config: Config, artefacts: Artefacts, shapes: TeacherShapes) -> CacheDescription:
    """The train split of these tokens, in shards of `shapes.shard_tokens`, as the configuration keeps it."""
    lengths = TokenStore.open(artefacts.tokens).split("train").lengths.astype(np.int64)
    shards = cut_into_shards(lengths, shapes.shard_tokens)[: shapes.shards]
    sequences = sum(shards[-1])
    train = SplitDescription(
        layout=config.cache.layout(
            "train",
            teacher_layers=shapes.layers,
            hidden_size=shapes.hidden_size,
            vocabulary_size=shapes.vocabulary_size,
        ),
        variants=1,
        sequences=sequences,
        tokens=int(lengths[:sequences].sum()),
        shards=shards,
    )
    return CacheDescription(
        spec=cache_spec(config),
        content={
            "tokens": TokenStore.open(artefacts.tokens).recorded_digest,
            "teacher": weights_digest(artefacts.teacher),
        },
        temperatures=config.cache.declared_temperatures,
        vocabulary_size=shapes.vocabulary_size,
        hidden_size=shapes.hidden_size,
        special_tokens=dict(SPECIAL),
        teacher_config={},
        splits={"train": train},
    )


def teacher_in_the_loop(folder: Path, device: str) -> PreTrainedModel:
    """The teacher of a project, beside a student: in the arithmetic and with the attention that are fastest on short sequences."""
    return load_masked_lm(
        Artefacts(project=folder).teacher,
        device=device,
        attention="eager" if device == "cpu" else "sdpa",
        dtype=torch.float32 if device == "cpu" else torch.bfloat16,
    )
