"""What a cache says of itself: how sure the teacher was, what top-k keeps of it, and where the bytes go.

Stage one records figures per shard, in the shard's manifest, so that no cache is ever read again to be described; here
they are added up. Masked and unmasked positions are told apart: a teacher that sees the word is nearly certain of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from storage import CacheReader, ShardTargets
from storage.cache_info import KINDS, bytes_by_array, mean_figures

ENTROPY_EDGES = np.arange(0.0, 13.0, 0.5)
"""Nats; log of a vocabulary of 120,000 is 11.7, and the last bin takes what is beyond it."""
MASS_EDGES = np.linspace(0.0, 1.0, 21)
COLUMNS = ("figure", "temperature", "positions", "low", "high", "share")

_EDGES = {"entropy": ENTROPY_EDGES, "retained_mass": MASS_EDGES}


def shard_figures(
    targets: ShardTargets, masked: npt.NDArray[np.bool_], temperatures: tuple[float, ...]
) -> dict[str, dict[str, Any]]:
    """Per kind of position (`masked`: bool (rows,)): their number, and mean and histogram of each figure by temperature.

    `entropy` of the teacher's full distribution in nats; `retained_mass`, the probability that the cached ids hold,
    where logits are kept. A kind of which there are no rows is left out.
    """
    figures: dict[str, dict[str, Any]] = {}
    retained = _retained_mass(targets, temperatures)
    for name, chosen in zip(KINDS, (masked, ~masked), strict=True):
        if not chosen.any():
            continue
        entry: dict[str, Any] = {"positions": int(chosen.sum()), "entropy": {}, "retained_mass": {}}
        for i, temperature in enumerate(temperatures):
            entry["entropy"][str(temperature)] = _summary("entropy", targets.stat[chosen, 2 + 2 * i])
            if retained:
                entry["retained_mass"][str(temperature)] = _summary("retained_mass", retained[i][chosen])
        figures[name] = entry
    return figures


class TrainFigures:
    """The figures of a cache's train split, added up over its shards and mask variants."""

    def __init__(self, reader: CacheReader) -> None:
        shards = [shard for shard in reader.description.shard_ids() if shard.split == "train"]
        self._figures = [reader.shard_figures(shard) for shard in shards]
        self._positions = max(1, sum(reader.shard_counts(shard)["rows"] for shard in shards))
        train = {name: record for name, record in reader.files.items() if name.startswith("shards/train-")}
        self._bytes = bytes_by_array(train)

    def bytes_per_position(self) -> dict[str, float]:
        """Bytes on disk per cached position, by array; `metadata` is the Zarr groups' own description."""
        return {name: round(size / self._positions, 2) for name, size in self._bytes.most_common()}

    def total_bytes_per_position(self) -> float:
        """The sum over the arrays."""
        return round(self._bytes.total() / self._positions, 1)

    def retained_mass(self) -> dict[str, float]:
        """Mean over all positions, by temperature; empty where no logits are kept."""
        found = mean_figures(entry for kind in KINDS for entry in self._entries(kind))
        return dict(found.get("retained_mass", {}))

    def of(self, kind: str) -> dict[str, Any]:
        """Number and means of the positions of one kind, `masked` or `unmasked`; empty where none are cached."""
        found = mean_figures(self._entries(kind))
        return {**found, **{name: found.get(name, {}) for name in _EDGES}} if found else {}

    def histograms(self) -> Iterator[dict[str, Any]]:
        """Rows of `COLUMNS`: the share of the positions of a kind in each bin from `low` to `high`."""
        for positions in KINDS:
            entries = list(self._entries(positions))
            for name, edges in _EDGES.items():
                for temperature in entries[0][name] if entries else ():
                    counts = np.sum([entry[name][temperature]["counts"] for entry in entries], axis=0)
                    for low, high, share in zip(edges, edges[1:], counts / counts.sum(), strict=False):
                        row = (name, temperature, positions, round(low, 2), round(high, 2), round(share, 5))
                        yield dict(zip(COLUMNS, row, strict=True))

    def _entries(self, positions: str) -> Iterator[Mapping[str, Any]]:
        return (figures[positions] for figures in self._figures if positions in figures)


def _retained_mass(targets: ShardTargets, temperatures: tuple[float, ...]) -> list[npt.NDArray[np.float32]]:
    """Probability of the cached ids of each row, f4 (rows,) per temperature; empty where no logits are kept."""
    logits = targets.top_logits
    if logits is None:
        return []
    masses = []
    for i, temperature in enumerate(temperatures):
        logsumexp = targets.stat[:, 1 + 2 * i]
        if targets.top_count is None:
            masses.append(np.exp(logits / temperature - logsumexp[:, None]).sum(-1))
        else:  # every row has an entry, so no range is empty
            starts = np.cumsum(targets.top_count, dtype=np.int64) - targets.top_count
            likely = np.exp(logits / temperature - logsumexp.repeat(targets.top_count))
            masses.append(np.add.reduceat(likely, starts) if len(starts) else logsumexp)
    return masses


def _summary(name: str, values: npt.NDArray[np.floating[Any]]) -> dict[str, Any]:
    edges = _EDGES[name]
    # Rounding can lift a probability just over 1.
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return {"mean": round(float(values.mean(dtype=np.float64)), 5), "counts": counts.tolist()}
