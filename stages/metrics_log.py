"""`metrics.jsonl`: how the teacher's pass went, a line per shard, for whoever watches a long run or asks afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stages.context import Figure
from storage.cache_info import KINDS, mean_figures
from storage.layout import ShardId
from storage.manifest import ShardManifest
from storage.publication import shard_bytes


class MetricsLog:
    """Appends one JSON object per shard to a file, where what earlier starts wrote stays, and adds up what is shown meanwhile.

    Keys: `time` (UTC) and `started` (that of this start: it tells starts apart); `shard`, its `tokens`, `bytes` on disk and
    `retained_mass` by temperature (where logits are cached); `shards_done` of `shards_of_this_start`, `tokens_done` of
    `tokens_of_this_start`; `tokens_per_second` since the start, and `seconds_left` at that speed.
    """

    def __init__(self, file: Path, *, shards: int, tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`shards` and `tokens` are what is to be computed in this start."""
        self._file, self._shards, self._tokens, self._clock = file, shards, tokens, clock
        self._started, self._started_at = clock(), _now()
        self._shards_done = self._tokens_done = self._bytes = self._positions = 0
        self._retained = 0.0

    def add(self, shard: ShardId, tokens: int, manifest: ShardManifest) -> None:
        """A shard of so many tokens is published."""
        self._shards_done += 1
        self._tokens_done += tokens
        seconds = max(self._clock() - self._started, 1e-9)
        speed = self._tokens_done / seconds
        size, found = shard_bytes(manifest), mean_figures(manifest.figures.get(kind) for kind in KINDS)
        retained_mass = found.get("retained_mass", {})
        self._bytes += size
        for mass in list(retained_mass.values())[:1]:  # at the first temperature that is declared
            self._positions += found["positions"]
            self._retained += found["positions"] * mass
        self._append(
            {
                "time": _now(),
                "started": self._started_at,
                "shard": str(shard),
                "tokens": tokens,
                "bytes": size,
                "retained_mass": retained_mass,
                "shards_done": self._shards_done,
                "shards_of_this_start": self._shards,
                "tokens_done": self._tokens_done,
                "tokens_of_this_start": self._tokens,
                "tokens_per_second": round(speed, 1),
                "seconds_left": round((self._tokens - self._tokens_done) / speed, 1),
            }
        )

    def figures(self) -> dict[str, Figure]:
        """To be shown beside the bar: shards (`3 of 12`), megabytes, and the mean probability that the cached logits hold."""
        figures: dict[str, Figure] = {
            "shards": f"{self._shards_done} of {self._shards}",
            "megabytes": round(self._bytes / 1e6, 2),
        }
        if self._positions:
            figures["retained mass"] = round(self._retained / self._positions, 3)
        return figures

    def _append(self, line: dict[str, Any]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+b") as file:
            if file.tell():  # a process that was killed may have left half a line
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
