"""What all benchmarks share: their two options, interleaved measurement, and ratios with their spread.

A benchmark imports it by `from measure import ...`: Python puts the folder of the script on the path.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.summary import print_table

ROUNDS = 5
"""Pairs of measurements, at least: the first round warms up and is not counted."""


def arguments(description: str) -> argparse.Namespace:
    """`--json FILE` (a `Path`, or None) and `--quick`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the ratios there")
    parser.add_argument("--quick", action="store_true", help="small shapes; only shows that it runs")
    return parser.parse_args()


def rounds(options: argparse.Namespace) -> int:
    """How often each contender is measured."""
    return 1 if options.quick else ROUNDS


@dataclass(frozen=True)
class Spread:
    """A median over rounds, and the range that the rounds span."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int = 2) -> str:
        """`1.07 (1.02 to 1.11)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def interleaved(contenders: Mapping[str, Callable[[], float]], count: int = ROUNDS) -> dict[str, list[float]]:
    """What each contender returns, for each round: one after the other within a round, so that all see the same machine.

    A first round that does not count fills caches and compiles what is compiled once.
    """
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, count):
        for name, run in contenders.items():
            gc.collect()
            value = run()
            if number >= 0:
                results[name].append(value)
    return results


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours divided by theirs, round by round."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and what it starts, on one core: what is measured is then per core, waiting included."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def memory(field: str, process: int | str = "self") -> int:
    """A field of a process's status, in bytes: VmRSS is what is resident, VmHWM the most that was. On Linux only."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def forget_peak() -> None:
    """Have VmHWM of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def finish(ratios: Mapping[str, Spread], goals: Mapping[str, str], file: Path | None, *, quick: bool) -> None:
    """Print the ratios beside their goals, and write them to `file` where one is given."""
    print_table(
        "ratios" + (" (--quick: small shapes, they say nothing)" if quick else ""),
        ["ratio", "median (range)", "goal"],
        [[name, spread.shown(3), goals.get(name, "-")] for name, spread in ratios.items()],
    )
    if file is not None:
        content = {
            "ratios": {name: spread.median for name, spread in ratios.items()},
            "ranges": {name: [spread.low, spread.high] for name, spread in ratios.items()},
        }
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
