"""What a cache will be: identity, layouts and shard plan, known from the parameters, the tokens and the teacher's files."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.attention_vectors import attention_widths
from stages.config import Config, cache_spec, to_plain
from stages.config.base import refuse
from stages.context import Context
from stages.errors import InputError
from stages.lasting_task import LastingTask
from stages.model_config import ModelShape
from stages.models import folder_bytes, load_model_config, load_tokenizer, model_without_weights, weights_digest
from stages.provenance import RESOLVED, read_resolved
from stages.sequences import TokenStore
from stages.teacher_fit import check_teacher_fits
from storage import SPLITS, CacheDescription, Split, SplitDescription, differing_fields


def describe(
    config: Config, context: Context, tokens: TokenStore, splits: Collection[Split] = SPLITS
) -> CacheDescription:
    """Identity, layouts and shard plan of the cache that these parameters, tokens and teacher give.

    Raises `InputError` or `ConfigError` where they do not fit each other, before any work, and `Interrupted` where a stop is
    asked for while tokens and teacher are read.
    """
    teacher_config = load_model_config(context.artefacts.teacher)
    shape = ModelShape.of(teacher_config)
    vocabulary_size, layers = shape.vocabulary_size, shape.layers
    folder = context.artefacts.teacher
    own = load_tokenizer(folder) if (folder / "tokenizer_config.json").is_file() else None
    check_teacher_fits(str(folder), shape, own, tokens)
    _check_origin(config, context)
    if config.cache.train_top_k > vocabulary_size:
        raise refuse("cache.top_k", config.cache.train_top_k, f"at most the teacher's vocabulary ({vocabulary_size})")
    if config.cache.train_top_k == vocabulary_size and config.cache.rungs["draw_from"] == "tail":
        raise refuse("cache.draw_from", "tail", f"all, as cache.top_k is the whole vocabulary ({vocabulary_size})")
    config.check_layers(layers)
    widths = _attention_widths(config, folder, layers)
    return CacheDescription(
        spec=cache_spec(config),
        content=_content(context, tokens),
        temperatures=config.cache.declared_temperatures,
        vocabulary_size=vocabulary_size,
        hidden_size=shape.hidden_size,
        special_tokens=dict(tokens.special_tokens),
        teacher_config=teacher_config,
        splits={split: _describe_split(config, tokens, split, shape, widths) for split in SPLITS if split in splits},
        objective=config.teacher.objective,
    )


def require_tokens(description: CacheDescription, tokens: TokenStore) -> None:
    """Raise `InputError` unless these are the tokens that the cache was described with, as `tokenize` recorded them.

    Cheap enough for every shard: `pipeline tokenize` may run while the teacher's pass, which takes hours, does.
    """
    _require("tokens", tokens.recorded_digest, description, tokens.folder)


def require_teacher(description: CacheDescription, folder: Path) -> None:
    """Raise `InputError` unless the files in `folder` are those of the teacher that the cache was described with. Reads them."""
    _require("teacher", weights_digest(folder), description, folder)


def _require(name: str, found: str, description: CacheDescription, folder: Path) -> None:
    expected = description.content[name]
    if found != expected:
        raise InputError(
            f"{folder} is not the one that cache {description.fingerprint[:12]} is of: the digest of the {name} is {found[:12]}..., "
            f"expected {expected[:12]}...; it was changed since the pass began, or is another one on this machine; put it back, or "
            "run `pipeline cache-teacher` again for a cache of what is there now"
        )


def _content(context: Context, tokens: TokenStore) -> dict[str, str]:
    """Digests of the teacher and the tokens, of every byte: that takes as long as they are large."""
    kept = "all is as it was: reading tokens and teacher keeps nothing"
    teacher, size = context.artefacts.teacher, sum(int(tokens.split(split).lengths.sum()) for split in SPLITS)
    return {
        "teacher": weights_digest(
            teacher, LastingTask(context, "read the teacher", folder_bytes(teacher), "bytes", kept=kept)
        ),
        **tokens.content_digests(LastingTask(context, "read the tokens", size, "tokens", kept=kept)),
    }


def _check_origin(config: Config, context: Context) -> None:
    """Refuse documents, tokens or a teacher made with other parameters than these: the cache's `spec` would not be true.

    A folder that no stage of ours made says nothing of its parameters; its digest is part of the identity all the same.
    """
    trained = ("teacher",) if config.teacher.training is None else ("teacher", "masking")
    artefacts = context.artefacts
    for folder, sections, command in (
        (artefacts.documents, ("corpus",), "pipeline corpus"),
        (artefacts.tokens, ("tokenize",), "pipeline tokenize"),
        (artefacts.teacher, trained, artefacts.teacher_command),
    ):
        if not (folder / RESOLVED).is_file():
            continue
        found = read_resolved(folder, command)
        differences = differing_fields(
            {name: to_plain(getattr(config, name)) for name in sections},
            {name: found.get(name) for name in sections},
            found_in="there",
        )
        if differences:
            raise InputError(
                f"{folder} was made with other parameters: {'; '.join(differences)}; run: {command}, and what follows it"
            )


def _attention_widths(config: Config, teacher: Path, layers: int) -> tuple[int, ...]:
    """Of the vectors of attention that are to be cached; only the teacher's modules say it."""
    cache = config.cache
    if cache.attention_vectors is None:
        return ()
    model = model_without_weights(teacher, config.teacher.objective)
    return attention_widths(model, cache.attention_blocks(layers), cache.attention_vectors)


def _describe_split(
    config: Config, tokens: TokenStore, split: Split, shape: ModelShape, widths: tuple[int, ...]
) -> SplitDescription:
    lengths = tokens.split(split).lengths
    wanted = getattr(config.cache.sequences, split)
    if wanted is not None and wanted > len(lengths):
        raise refuse(f"cache.sequences.{split}", wanted, f"null or at most the {len(lengths)} sequences in data/tokens")
    lengths = lengths[:wanted].astype(np.int64)
    return SplitDescription(
        layout=config.cache.layout(
            split,
            teacher_layers=shape.layers,
            hidden_size=shape.hidden_size,
            vocabulary_size=shape.vocabulary_size,
            attention_widths=widths,
        ),
        variants=config.masking.variants if split == "train" else 1,
        sequences=len(lengths),
        tokens=int(lengths.sum()),
        shards=cut_into_shards(lengths, config.cache.shard_tokens),
    )


def cut_into_shards(lengths: npt.NDArray[np.integer[Any]], shard_tokens: int) -> tuple[tuple[int, int], ...]:
    """First sequence and number of sequences of each shard: cut where the running token count passes a multiple of `shard_tokens`."""
    number = (np.cumsum(lengths, dtype=np.int64) - lengths) // shard_tokens
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    counts = np.diff(starts, append=len(lengths))
    return tuple(zip(starts.tolist(), counts.tolist(), strict=True))
