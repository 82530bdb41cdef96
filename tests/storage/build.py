"""A small random cache that obeys FORMAT.md, for tests: the targets come from random logits over a small vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage import CacheDescription, CacheWork, Layout, ShardId, ShardTargets, Split, SplitDescription

VOCABULARY_SIZE = 50
HIDDEN_SIZE = 24
TEMPERATURES = (1.0, 2.0)

LOSSLESS = Layout(positions="all", hidden="float32", hidden_layers=(2,), logits="float32", top_k=VOCABULARY_SIZE)
EXACT = Layout(positions="all", hidden="float16", hidden_layers=(2,), logits="float16", top_k=16)
BALANCED = Layout(positions="all", hidden="int8", hidden_layers=(2,), logits="grid", top_k=8, hidden_group=16)
MASKED = Layout(positions="masked", hidden="int8", hidden_layers=(0, 2), logits="grid", top_k=8, hidden_group=16)
LOGITS_ONLY = Layout(positions="masked", hidden="none", hidden_layers=(), logits="float16", top_k=4)
HIDDEN_ONLY = Layout(positions="all", hidden="float16", hidden_layers=(1, 2), logits="none", top_k=0)
THRESHOLD = Layout(
    positions="all",
    hidden="bfloat16",
    hidden_layers=(2,),
    logits="grid",
    selection="threshold",
    top_k=6,
    threshold=0.05,
    threshold_temperature=2.0,
)
DRAWS = Layout(positions="masked", hidden="none", hidden_layers=(), logits="grid", top_k=4, draws=20)
DRAWS_ONLY = Layout(positions="all", hidden="none", hidden_layers=(), logits="none", top_k=0, draws=255)
TAIL = Layout(
    positions="sampled",
    position_fraction=0.3,
    hidden="int8",
    hidden_layers=(0, 2),
    hidden_group=HIDDEN_SIZE,
    logits="float16",
    selection="threshold",
    top_k=6,
    threshold=0.1,
    draws=9,
    draw_from="tail",
    draw_temperature=2.0,
)
ATTENTION = Layout(
    positions="all",
    hidden="int8",
    hidden_layers=(0, 1, 2),
    hidden_group=16,
    logits="grid",
    top_k=8,
    attention_vectors=("queries", "keys", "values"),
    attention_widths=(24, 12, 12),
    attention_layers=(1, 2),
)
ATTENTION_ONLY = Layout(
    positions="all",
    hidden="none",
    hidden_layers=(),
    logits="none",
    top_k=0,
    attention_vectors=("queries", "values"),
    attention_widths=(16, 8),
    attention_layers=(2,),
    attention_coding="bfloat16",
)
CLASSES = Layout(
    positions="all",
    hidden="none",
    hidden_layers=(),
    logits="none",
    top_k=0,
    task="classification",
    task_width=3,
    token_types=True,
)
SCORE = replace(CLASSES, task_width=1, token_types=False)
ANSWERS = Layout(
    positions="all",
    hidden="int8",
    hidden_layers=(2,),
    hidden_group=16,
    logits="none",
    top_k=0,
    task="answers",
    task_width=2,
    token_types=True,
)
LAYOUTS = {
    "lossless": LOSSLESS,
    "exact": EXACT,
    "balanced": BALANCED,
    "masked": MASKED,
    "logits_only": LOGITS_ONLY,
    "hidden_only": HIDDEN_ONLY,
    "threshold": THRESHOLD,
    "draws": DRAWS,
    "draws_only": DRAWS_ONLY,
    "tail": TAIL,
    "attention": ATTENTION,
    "attention_only": ATTENTION_ONLY,
    "classes": CLASSES,
    "score": SCORE,
    "answers": ANSWERS,
}


def sequence_lengths(description: CacheDescription, shard: ShardId) -> np.ndarray:
    """The lengths of the shard's sequences: a pure function of the sequence ids."""
    start, count = description.span(shard)
    return 2 + (7 * np.arange(start, start + count)) % 11


def make_description(
    train: Layout = BALANCED, *, variants: int = 1, shards: int = 3, sequences_per_shard: int = 5, **spec: Any
) -> CacheDescription:
    """A description with a train split of this layout and an `exact` (or `lossless`) validation split of one shard."""

    def split(layout: Layout, variants: int, shards: int) -> SplitDescription:
        sequences = shards * sequences_per_shard
        return SplitDescription(
            layout=layout,
            variants=variants,
            sequences=sequences,
            tokens=int((2 + (7 * np.arange(sequences)) % 11).sum()),
            shards=tuple((number * sequences_per_shard, sequences_per_shard) for number in range(shards)),
        )

    splits: dict[Split, SplitDescription] = {
        "train": split(train, variants, shards),
        "validation": split(LOSSLESS if train == LOSSLESS else EXACT, 1, 1),
    }
    if train.task != "none":
        splits["validation"] = split(train, 1, 1)
    return CacheDescription(
        spec={"cache": {"top_k": train.top_k, **spec}},
        content={"tokens": "0" * 64},
        temperatures=TEMPERATURES if train.task == "none" else (1.0,),
        vocabulary_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        special_tokens={"pad": 0, "mask": 1, "unknown": None},
        teacher_config={"model_type": "bert"},
        splits=splits,
        task=None if train.task == "none" else task_of(train),
    )


def task_of(layout: Layout) -> dict[str, Any]:
    """What cache.json says of the task of such a layout."""
    named = layout.task == "classification" and layout.task_width > 1
    labels = [f"class {number}" for number in range(layout.task_width)] if named else None
    return {
        "name": "small",
        "kind": "SQuAD" if layout.task == "answers" else "MNLI",
        "head": layout.task,
        "labels": labels,
    }


def make_targets(description: CacheDescription, shard: ShardId) -> ShardTargets:
    """Targets of one shard from random logits: a pure function of the shard's name."""
    layout = description.splits[shard.split].layout
    generator = np.random.default_rng([*str(shard).encode()])
    offsets = np.concatenate([[0], np.cumsum(sequence_lengths(description, shard))]).astype(np.uint32)
    tokens = int(offsets[-1])
    original_ids = generator.integers(2, description.vocabulary_size, tokens)
    masked = (generator.random(tokens) < (0.4 if layout.task == "none" else 0.0)).astype(np.uint8)
    wanted = masked == 1
    if layout.positions == "sampled":
        wanted |= generator.random(tokens) < layout.position_fraction
    row_token = None if layout.positions == "all" else np.flatnonzero(wanted).astype(np.uint32)
    rows = tokens if row_token is None else len(row_token)
    logits = (4 * generator.standard_normal((rows, description.vocabulary_size))).astype(np.float32)
    hidden_shape = (rows, len(layout.hidden_layers), description.hidden_size)
    hidden = generator.standard_normal(hidden_shape).astype(np.float32) if layout.hidden != "none" else None
    attention = {
        part: generator.standard_normal((rows, len(layout.attention_layers), width)).astype(np.float32)
        for part, width in zip(layout.attention_vectors, layout.attention_widths, strict=True)
    }
    selected = select_ids(logits, layout)
    return ShardTargets(
        sequence_offsets=offsets,
        original_ids=original_ids,
        input_ids=np.where(masked == 1, 1, original_ids),
        masked=masked,
        row_token=row_token,
        stat=np.empty((tokens, 0), np.float32)
        if layout.task != "none"
        else make_stat(logits, description.temperatures),
        hidden=hidden,
        attention=attention,
        **selected,
        **draw_ids(logits, layout, selected, generator),
        **task_arrays(layout, offsets, generator),
    )


def task_arrays(layout: Layout, offsets: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Token types, labels and logits of a downstream task; every third sequence has no label."""
    if layout.task == "none":
        return {}
    sequences, tokens = len(offsets) - 1, int(offsets[-1])
    labelled = (np.arange(sequences) % 3 != 2).astype(np.uint8)
    answers = layout.task == "answers"
    most = np.diff(offsets) if answers else layout.task_width
    label = generator.integers(0, most, (2 if answers else 1, sequences)).T.astype(np.float32)
    if layout.task_width == 1:
        label = generator.normal(size=label.shape).astype(np.float32)
    shape = (tokens, 2) if answers else (sequences, layout.task_width)
    return {
        **({"token_types": generator.integers(0, 2, tokens).astype(np.uint8)} if layout.token_types else {}),
        "task_labelled": labelled,
        "task_label": np.where(labelled[:, None] == 1, label, np.float32(0)),
        "task_logits": generator.standard_normal(shape).astype(np.float32),
    }


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """f8 (R, V)."""
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def select_ids(logits: np.ndarray, layout: Layout) -> dict[str, np.ndarray | None]:
    """`top_ids`, `top_logits` and perhaps `top_count` of dense logits f4 (R, V), row by row."""
    if layout.logits == "none":
        return {"top_ids": None, "top_logits": None}
    top_ids = np.argsort(-logits, axis=1, kind="stable")[:, : layout.top_k]
    top_logits = np.take_along_axis(logits, top_ids, axis=1)
    if layout.selection == "top_k":
        return {"top_ids": top_ids, "top_logits": top_logits}
    p = np.take_along_axis(softmax(logits, layout.threshold_temperature), top_ids, axis=1)
    kept = p >= layout.threshold
    kept[:, 0] = True
    return {"top_ids": top_ids[kept], "top_logits": top_logits[kept], "top_count": kept.sum(axis=1).astype(np.uint8)}


def draw_ids(
    logits: np.ndarray, layout: Layout, selected: dict[str, np.ndarray | None], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """`draw_count`, `draw_ids` and `draw_weight`; nothing where the layout has no draws."""
    if layout.draws == 0:
        return {}
    p = softmax(logits, layout.draw_temperature)
    if layout.draw_from == "tail":
        count = selected.get("top_count")
        p[np.repeat(np.arange(len(p)), layout.top_k if count is None else count), selected["top_ids"].reshape(-1)] = 0
        p /= p.sum(axis=1, keepdims=True)
    weights = generator.multinomial(layout.draws, p)
    rows, ids = np.nonzero(weights)
    count = np.bincount(rows, minlength=len(p)).astype(np.uint8)
    return {"draw_count": count, "draw_ids": ids, "draw_weight": weights[rows, ids].astype(np.uint8)}


def make_stat(logits: np.ndarray, temperatures: tuple[float, ...]) -> np.ndarray:
    """`stat` f4 (R, 1 + 2 D) of dense logits f4 (R, V), by its definition in FORMAT.md."""
    columns = [logits.max(axis=1).astype(np.float64)]
    for temperature in temperatures:
        scaled = logits.astype(np.float64) / temperature
        logsumexp = np.log(np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)) + scaled.max(axis=1)
        log_p = scaled - logsumexp[:, None]
        columns += [logsumexp, -(np.exp(log_p) * log_p).sum(axis=1)]
    return np.stack(columns, axis=1).astype(np.float32)


def add_files(work: CacheWork, scratch: Path) -> None:
    """The files beside the shards: a head and a tokenizer in name only."""
    tokenizer = scratch / "tokenizer-source"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / "vocab.txt").write_text("[PAD]\n[MASK]\n")
    work.add_folder("tokenizer", tokenizer)
    if work.description.task is None:
        work.add_file("head.json", b"{}\n")
        work.add_file("head.safetensors", b"tensors")


def publish(work: CacheWork, shard: ShardId) -> int:
    """Publish the shard's random targets."""
    return work.publish(
        shard, make_targets(work.description, shard), {"device": "cpu"}, {"retained_mass": {"1.0": 0.9}}
    )


def fill(work: CacheWork, scratch: Path) -> None:
    """Add everything that the work folder misses."""
    add_files(work, scratch)
    for shard in work.missing():
        publish(work, shard)


def build_cache(folder: Path, description: CacheDescription | None = None) -> Path:
    """A finished cache at `folder / "current"`, made in `folder / "work"`; the path of the cache."""
    with CacheWork.open(folder / "work", description or make_description()) as work:
        fill(work, folder)
        work.finish(folder / "current")
    return folder / "current"
