"""All figures of the ladder: one entry for each rung, and for each tail of those that keep logits."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import interleaved, one_core
from torch import Tensor

from ladder.gradient import AVERAGED, StudentGradient
from ladder.rungs import TEMPERATURE, TEMPERATURES, Rung, Tail
from ladder.stored import Stored, decoder, encoder, store
from ladder.teacher import Said, Teacher, hidden_divergence, in_float16, mean_by_kind
from ladder.truncated import Truncated
from storage import CacheDescription

ByKind = dict[str, float]
"""`all`, `masked` and `unmasked` positions."""


@dataclass(kw_only=True)
class Entry:
    """What was measured of a rung with a tail; temperatures are keys such as `1.0`."""

    name: str
    family: str
    tail: Tail | None
    targets_bytes: float
    """Per position: the rung's own arrays."""
    total_bytes: float
    """Per position: with tokens, masks and statistics, which all rungs hold."""
    metadata_bytes: int
    """Per shard."""
    encode: float | None
    """Positions per second, one core; as is `decode`."""
    decode: float | None
    kl: dict[str, ByKind] = field(default_factory=dict)
    """Of the teacher to what is rebuilt, over the whole vocabulary, nats."""
    bucket_kl: dict[str, ByKind] = field(default_factory=dict)
    """The same over the kept ids and one bucket."""
    mass_kept: dict[str, ByKind] = field(default_factory=dict)
    cosine_error: float | None = None
    """1 - cos of the hidden states, mean over all positions."""
    ids: ByKind = field(default_factory=dict)
    """Ids per position, where rows differ in them."""
    gradient: dict[str, dict[str, float]] = field(default_factory=dict)
    """Relative L2 error of the encoder's gradient, by temperature, then kind of position."""
    averaged: dict[str, dict[str, float]] = field(default_factory=dict)
    """For draws: the same of the mean gradient over so many independent sets, by their number."""

    def plain(self) -> dict[str, Any]:
        """JSON: infinite divergences are null."""
        values = asdict(self)
        for of_kind in values["kl"].values():
            of_kind.update({kind: None for kind, value in of_kind.items() if not np.isfinite(value)})
        return values


@torch.inference_mode()
def measure(
    cache: CacheDescription, teacher: Teacher, rungs: Sequence[Rung], folder: Path, rounds: int
) -> tuple[list[Entry], dict[str, Stored], Said]:
    """Bytes, divergences and speed of all rungs; `folder` takes their shards."""
    said = Said.by(teacher)
    stored = {rung.name: store(folder, cache, rung, teacher, said) for rung in rungs}
    speeds = _speeds(rungs, stored, teacher, said, rounds)
    states = {rung.name: _state(rung, stored[rung.name], teacher) for rung in rungs if rung.reads_hidden}
    through_head = hidden_divergence(teacher, states)
    entries = []
    for rung in rungs:
        for tail in rung.tails or (None,):
            entry = _blank(rung, tail, stored[rung.name], speeds)
            if rung.reads_hidden:
                entry.kl = _by_kind(through_head[rung.name], teacher)
                entry.cosine_error = _cosine_error(teacher.hidden, states[rung.name][0])
            if rung.layout.top_k:
                _add_truncated(entry, rung, stored[rung.name], teacher, said)
            _add_counts(entry, stored[rung.name], teacher)
            entries.append(entry)
    return entries, stored, said


def add_gradients(
    entries: Sequence[Entry],
    rungs: Sequence[Rung],
    stored: Mapping[str, Stored],
    said: Said,
    student: StudentGradient,
) -> Iterator[str]:
    """Measure the gradient's error of all entries, in place; gives the name of each one that is done."""
    by_name = {rung.name: rung for rung in rungs}
    for entry in entries:
        rung = by_name[entry.name]
        sampled = rung.layout.draws > 0
        for temperature in (TEMPERATURE,) if sampled else TEMPERATURES:
            targets = student.targets(rung, stored[rung.name], temperature, entry.tail)
            entry.gradient[str(temperature)] = student.errors(targets, temperature)
        if sampled:
            entry.averaged = {str(sets): student.averaged(rung, said, sets) for sets in AVERAGED}
        yield entry.name


def _speeds(
    rungs: Sequence[Rung], stored: Mapping[str, Stored], teacher: Teacher, said: Said, rounds: int
) -> dict[tuple[str, str], float]:
    runs = {("encode", rung.name): encoder(rung, teacher, said) for rung in rungs}
    runs |= {("decode", rung.name): decoder(rung, stored[rung.name]) for rung in rungs}
    contenders = {key: run for key, run in runs.items() if run is not None}
    with one_core():
        seconds = interleaved({" ".join(key): run for key, run in contenders.items()}, rounds)
    return {key: len(teacher.hidden) / statistics.median(seconds[" ".join(key)]) for key in contenders}


def _blank(rung: Rung, tail: Tail | None, stored: Stored, speeds: Mapping[tuple[str, str], float]) -> Entry:
    return Entry(
        name=rung.name,
        family=rung.family,
        tail=tail,
        targets_bytes=stored.targets,
        total_bytes=stored.total,
        metadata_bytes=stored.metadata,
        encode=speeds.get(("encode", rung.name)),
        decode=speeds.get(("decode", rung.name)),
    )


def _state(rung: Rung, stored: Stored, teacher: Teacher) -> tuple[Tensor, Any]:
    hidden = torch.from_numpy(stored.arrays.decoded_hidden(rung.layout)[:, -1].copy())
    return hidden, teacher.head if rung.exact_head else in_float16(teacher.head)


def _add_truncated(entry: Entry, rung: Rung, stored: Stored, teacher: Teacher, said: Said) -> None:
    for index, temperature in enumerate(TEMPERATURES):
        kept = _truncated(rung, stored, index)
        entry.mass_kept[str(temperature)] = mean_by_kind(kept.mass_kept(said), teacher.masked)
        entry.bucket_kl[str(temperature)] = mean_by_kind(kept.bucket_divergence(said), teacher.masked)
        if entry.tail is not None:
            divergence = kept.divergence(said, teacher.unigram, entry.tail)
            entry.kl[str(temperature)] = mean_by_kind(divergence, teacher.masked)


def _truncated(rung: Rung, stored: Stored, index: int) -> Truncated:
    """The stored logits of all rows, ragged ones filled up with the row's first id."""
    arrays, temperature = stored.arrays, TEMPERATURES[index]
    logits, ids = arrays.decoded_logits(rung.layout), arrays.top_ids
    assert ids is not None, rung.name
    if arrays.top_count is None or arrays.top_offsets is None:
        kept = np.ones(ids.shape, np.bool_)
    else:
        kept = np.arange(int(arrays.top_count.max())) < arrays.top_count[:, None]
        starts = arrays.top_offsets[:-1][:, None]
        places = np.where(kept, starts + np.arange(kept.shape[1]), starts)
        logits, ids = logits[places], ids[places]
    logits = np.concatenate([arrays.stat[:, :1], logits[:, 1:]], 1)  # as `TargetDecoder.top_k` reads them
    log_q = logits.astype(np.float64) / temperature - arrays.stat[:, 1 + 2 * index, None]
    to_torch = torch.from_numpy
    return Truncated(to_torch(ids.astype(np.int64)), to_torch(kept), to_torch(log_q), temperature)


def _add_counts(entry: Entry, stored: Stored, teacher: Teacher) -> None:
    arrays = stored.arrays
    counts = [count for count in (arrays.top_count, arrays.draw_count) if count is not None]
    if counts:
        entry.ids = mean_by_kind(np.stack(counts).sum(0, dtype=np.int64), teacher.masked)


def _by_kind(divergences: Mapping[float, Tensor], teacher: Teacher) -> dict[str, ByKind]:
    return {str(t): mean_by_kind(values, teacher.masked) for t, values in divergences.items()}


def _cosine_error(hidden: Tensor, decoded: Tensor) -> float:
    return float((1 - F.cosine_similarity(hidden.double(), decoded.double(), dim=-1)).mean())
