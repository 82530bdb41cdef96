"""What a second worker process brings to stage one: two workers of one thread each against one.

Both do what `pipeline cache-teacher --workers N` has done by its workers (forward pass, coding, checks, fsync and publication of
every shard), fed by the same runner. The teacher is BERT-base with random weights, as in `cache_teacher.py`; random tokens. What is
compared is tokens per second in the steady state: workers and teacher are there already when the clock starts, at the second shard
per worker, and it stops at a shard that was published while every worker still had others in hand. The shards are thrown away.

The single worker codes and writes on the core that stands idle, which two workers must do on the cores that compute: what a shard
takes beside the forward pass is what they lose, and the smaller the teacher and the shards, the more of it there is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from measure import Spread, arguments, finish, interleaved, ratio, rounds
from teacher_project import TeacherShapes, build, configured, describe

from pipeline.environment import quiet_libraries
from pipeline.summary import print_table
from pipeline.workers.dask_runner import DaskRunner
from pipeline.workers.local import LocalWorkers
from pipeline.workers.process import Machine
from stages.config import Config
from stages.context import Artefacts
from stages.sharing import Failed, Place
from stages.teacher_job import TeacherJob
from storage import CacheDescription, CacheWork, SplitDescription

GOALS = {"scaling_2": ">= 1.85"}
WORKERS = (1, 2)
MACHINE = Machine("cpu", 1, tensors=True, debug=False)
WARM, LEFT = 2, 2
"""Shards per worker before the clock starts, and after it stops: one is computed while the next waits for its turn."""


def shapes(measured: int, *, quick: bool) -> TeacherShapes:
    """Shards for the larger number of workers."""
    shards = (WARM + measured + LEFT) * max(WORKERS)
    if quick:
        return replace(TeacherShapes.quick(), shards=shards)
    return TeacherShapes(shards=shards, shard_tokens=4096)


def first_shards(description: CacheDescription, number: int) -> CacheDescription:
    """The same cache, of fewer shards."""
    train = description.splits["train"]
    kept = train.shards[:number]
    return replace(description, splits={"train": _shortened(train, kept)})


def _shortened(train: SplitDescription, shards: tuple[tuple[int, int], ...]) -> SplitDescription:
    start, count = shards[-1]
    return replace(
        train, shards=shards, sequences=start + count, tokens=train.tokens * (start + count) // train.sequences
    )


def tokens_per_second(
    runner: DaskRunner, workers: int, measured: int, config: Config, artefacts: Artefacts, whole: CacheDescription
) -> float:
    """Of so many workers, which are there already."""
    shutil.rmtree(artefacts.cache_work, ignore_errors=True)
    description = first_shards(whole, (WARM + measured + LEFT) * workers)
    job = TeacherJob(artefacts=artefacts, description=description, config=config)
    at: list[float] = []
    tokens: list[int] = []
    with (
        CacheWork.open(artefacts.cache_work, description) as work,
        closing(runner.run(job, work.missing(), Place())) as outcomes,
    ):
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise outcome.error
            at.append(time.perf_counter())
            tokens.append(work.take_in(outcome.item).counts["tokens"])
    first, last = WARM * workers - 1, (WARM + measured) * workers - 1
    return sum(tokens[first + 1 : last + 1]) / (at[last] - at[first])


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet_libraries(debug=False)
    measured = 2 if options.quick else 4
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        chosen = shapes(measured, quick=options.quick)
        artefacts = build(Path(scratch), chosen)
        config = configured(["cache.preset=balanced"])
        description = describe(config, artefacts, chosen)
        runs = {}
        for workers in WORKERS:
            log = Path(scratch) / "workers.log"
            runner = stack.enter_context(DaskRunner(LocalWorkers(workers, 1, [], log), MACHINE))
            runs[str(workers)] = partial(tokens_per_second, runner, workers, measured, config, artefacts, description)
        found = interleaved(runs, rounds(options))
    print_table(
        f"stage one with worker processes of one thread, {os.cpu_count()} cores",
        ["workers", "tokens/s, median (range)"],
        [[workers, Spread.of(rates).shown(0)] for workers, rates in found.items()],
    )
    finish({"scaling_2": ratio(found["2"], found["1"])}, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
