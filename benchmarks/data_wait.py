"""How long a training waits for its batches, beside a device that takes 30 ms for 4,096 tokens.

BERT-base's shapes, random numbers, micro-batches of 32 sequences of 128 tokens as `stages.batches.PlannedBatches` gives them:
decoded by the loader's process, put together by a thread, and pinned where there is a GPU. Each case is measured twice: flat
out, which says how many such devices one loader can serve, and with a pause of 30 ms after each micro-batch, in which this
thread sleeps as one does that waits for its GPU. The files are in the page cache.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from cache_of_noise import BALANCED, SMALL, Shapes, build
from measure import Spread, arguments, finish, interleaved, rounds

from pipeline.summary import print_table
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, Wanted
from storage import CacheReader, Layout

GOALS = {
    f"data_wait_share_{name}": "<= 0.02" for name in ("balanced_all", "balanced_masked", "small_all", "small_masked")
}
STEP_S = 0.030
BATCH = 32
ENDLESS = 10**6


@dataclass(frozen=True)
class Case:
    """A preset and what its default loss reads."""

    layout: Layout
    wanted: Wanted


_HIDDEN, _DRAWS = Wanted(hidden=True, logits=False), Wanted(hidden=False, logits=False, draws=True)
CASES = {
    "balanced_all": Case(BALANCED, _HIDDEN),
    "balanced_masked": Case(replace(BALANCED, positions="masked"), _HIDDEN),
    "small_all": Case(SMALL, _DRAWS),
    "small_masked": Case(replace(SMALL, positions="masked"), _DRAWS),
}


def batches(reader: CacheReader, case: Case) -> PlannedBatches:
    """Epoch after epoch."""
    counts = tuple(count for _, count in reader.description.splits["train"].shards)
    plan = BatchPlan(counts, BATCH, seed=0, variants=1)
    return PlannedBatches(
        reader, plan, wanted=case.wanted, micro_batch_size=BATCH, first_step=0, last_step=ENDLESS,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def measured(planned: PlannedBatches, count: int) -> tuple[float, float]:
    """Micro-batches per second where each is asked for at once; and the share of the time of `count` steps that was waited.

    Before it counts, as many batches have been taken: all memory has been used once.
    """
    running = iter(planned)
    for _ in islice(running, count):
        pass
    started = time.perf_counter()
    for _ in islice(running, count):
        pass
    per_second = count / (time.perf_counter() - started)
    time.sleep(STEP_S)
    waited, started = planned.waited_s, time.perf_counter()
    for _ in islice(running, count):
        time.sleep(STEP_S)
    share = (planned.waited_s - waited) / (time.perf_counter() - started)
    running.close()  # type: ignore[attr-defined]
    return per_second, share


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    shapes = Shapes(shards=12, sequences_per_shard=32 if options.quick else 256)
    steps = 5 if options.quick else 100
    with tempfile.TemporaryDirectory() as scratch:
        readers = {name: CacheReader(build(Path(scratch) / name, shapes, case.layout)) for name, case in CASES.items()}
        rates: dict[str, list[float]] = {name: [] for name in CASES}

        def share(name: str) -> float:
            rate, waited = measured(batches(readers[name], CASES[name]), steps)
            rates[name].append(rate)
            return waited

        shares = interleaved({name: partial(share, name) for name in CASES}, rounds(options))
    print_table(
        f"micro-batches of {BATCH} x {shapes.sequence_tokens} tokens; a device of {STEP_S * 1e3:.0f} ms wants {1 / STEP_S:.0f} a second",
        ["case", "per second", "devices", "waiting, % of the step"],
        [
            [
                name,
                Spread.of(rates[name][1:]).shown(0),  # the first round does not count
                Spread.of([rate * STEP_S for rate in rates[name][1:]]).shown(1),
                Spread.of([100 * share for share in shares[name]]).shown(2),
            ]
            for name in CASES
        ],
    )
    ratios = {f"data_wait_share_{name}": Spread.of(shares[name]) for name in CASES}
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
