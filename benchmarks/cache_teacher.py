"""What stage one costs over the teacher's bare forward pass.

A teacher in BERT-base's shapes with random weights. The bare pass reads the same tokens in the same batches, computes the
logits at the same positions, in chunks and in memory that it uses again, and keeps nothing. Ours is what `cache-teacher` runs:
masks, forward pass, selection, coding, checks, encoding, fsync and publication of every shard. Both start with the teacher
loaded. On a CPU in float32 with all cores; on a GPU in bfloat16, where the bare pass computes its logits in bfloat16 too.
`masked`: 15 % of the positions.

Parts: the time of the encoder alone, then what each step adds to it, one after the other without overlap.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from measure import Spread, arguments, finish, forget_peak, interleaved, memory, ratio, rounds
from teacher_project import TeacherShapes, build, configured, describe

from pipeline.environment import quiet_libraries
from pipeline.summary import print_table
from stages import device as tensor_device
from stages.context import Artefacts
from stages.forward_pass import encoder_states
from stages.heads import Head
from stages.masking import Masker
from stages.row_targets import RowTargets
from stages.sequences import TokenStore
from stages.sharing import Done, InProcess, Place
from stages.teacher_batches import batches
from stages.teacher_job import TeacherJob
from stages.teacher_loading import load_teacher
from stages.teacher_targets import SeenSequences, TargetsComputer, mask_shard
from storage import CacheWork, ShardId

GOALS = {
    "cpu": {
        "stage_one_balanced_all": ">= 0.90",
        "stage_one_balanced_masked": ">= 0.95",
        "stage_one_small_all": ">= 0.88",
    },
    "cuda": {"stage_one_balanced_all": ">= 0.85"},
}
KINDS = {
    "balanced_all": ["cache.preset=balanced"],
    "small_all": ["cache.preset=small", "train.kd_source=draws", "train.weights.cos=0"],
    "balanced_masked": ["cache.preset=balanced", "cache.positions=masked"],
}
MEASURED = ("bare balanced_all", "ours balanced_all", "ours small_all")


@dataclass(frozen=True)
class Begun:
    """A job that has begun already: what is timed starts with the teacher loaded."""

    do: Callable[[ShardId], None]
    at_once: int

    @contextmanager
    def begin(self, place: Place) -> Iterator[Callable[[ShardId], None]]:
        """Nothing more to load."""
        del place
        yield self.do


class Kind:
    """One way of keeping the teacher's targets, beside the bare pass over the same positions."""

    def __init__(self, artefacts: Artefacts, shapes: TeacherShapes, place: Place, overrides: list[str]) -> None:
        on_gpu = place.device != "cpu"
        self.config = configured(
            [
                *overrides,
                "masking.probability=0.15",
                f"cache.precision={'bfloat16' if on_gpu else 'float32'}",
                f"cache.batch_tokens={65536 if on_gpu else 4096}",
            ]
        )
        self.place = place
        self.description = describe(self.config, artefacts, shapes)
        self.layout = self.description.splits["train"].layout
        self.job = TeacherJob(artefacts=artefacts, description=self.description, config=self.config)
        self.shards = self.description.shard_ids()
        self.work: CacheWork
        self.tokens = TokenStore.open(artefacts.tokens)
        self.masker = Masker.of(self.config.masking, self.tokens, "train")
        self.teacher = load_teacher(
            artefacts.teacher,
            objective="masked",
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            device=place.device,
        )
        self.computer = TargetsComputer(
            self.teacher,
            temperatures=self.description.temperatures,
            pad_id=0,
            batch_tokens=self.config.cache.batch_tokens,
        )
        head = Head.of(self.teacher)
        detached = {name: tensor.detach() for name, tensor in head.tensors.items()}
        self.rows = RowTargets(Head(head.steps, detached), self.description.temperatures)
        self.bytes = 0

    @property
    def seen_tokens(self) -> int:
        """Tokens of all shards."""
        return self.description.splits["train"].tokens

    def seen(self, shard: ShardId) -> SeenSequences:
        """What the teacher reads of a shard."""
        return mask_shard(self.tokens, self.masker, shard, self.description.span(shard), seed=0)

    @torch.inference_mode()
    def bare(self, *, with_head: bool = True) -> None:
        """The forward pass, with or without logits at the cached positions."""
        for shard in self.shards:
            seen = self.seen(shard)
            wanted = torch.zeros(len(seen.original_ids), dtype=torch.bool)
            rows = seen.rows(self.layout)
            wanted[slice(None) if rows is None else torch.from_numpy(rows.astype("i8"))] = True
            for batch in batches(seen.offsets, self.config.cache.batch_tokens):
                input_ids = torch.zeros(batch.shape, dtype=torch.long)
                places = torch.from_numpy(batch.places)
                tokens = torch.from_numpy(batch.tokens)
                input_ids.view(-1)[places] = torch.from_numpy(seen.input_ids.astype("i8"))[tokens]
                mask = None
                if batch.is_padded:
                    mask = torch.zeros(batch.shape, dtype=torch.long)
                    mask.view(-1)[places] = 1
                    mask = mask.to(self.place.device)
                last, _ = encoder_states(self.teacher, input_ids.to(self.place.device), mask)
                if with_head:
                    kept = places[wanted[tokens]].to(self.place.device)
                    for _ in self.rows.logits(last.flatten(0, 1)[kept]):
                        pass

    def compute(self) -> None:
        """The forward pass and the targets, in memory."""
        for shard in self.shards:
            self.computer.compute(self.seen(shard), self.layout).targets()

    def publish(self) -> None:
        """The same, checked, encoded and written, one after the other."""
        self._begin_anew()
        for shard in self.shards:
            self.work.publish(shard, self.computer.compute(self.seen(shard), self.layout).targets(), {}, {})

    def stage(self, do: Callable[[ShardId], None]) -> None:
        """What the stage does, its overlap included."""
        self._begin_anew()
        with closing(InProcess().run(Begun(do, self.job.at_once), self.shards, self.place)) as outcomes:
            for outcome in outcomes:
                if not isinstance(outcome, Done):
                    raise outcome.error
        self.bytes = sum(file.stat().st_size for file in (self.work.folder / "shards").rglob("*") if file.is_file())

    def _begin_anew(self) -> None:
        for shard in self.shards:
            self.work.reject(shard)


def seconds(device: str, run: Callable[[], None]) -> float:
    """What one run takes."""
    started = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_memory(device: str, run: Callable[[], None]) -> float:
    """MiB that a run needs at most beyond what is held before it: of the GPU's memory, or resident (on Linux)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    if not Path("/proc/self/status").is_file():
        return float("nan")
    forget_peak()
    before = memory("VmRSS")
    run()
    return (memory("VmHWM") - before) / 2**20


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet_libraries(debug=False)
    device = tensor_device.resolve_device("auto")
    threads = tensor_device.set_up(device, len(os.sched_getaffinity(0)))
    place = Place(device=device, threads=threads)
    full = TeacherShapes() if device == "cpu" else TeacherShapes(shards=4, shard_tokens=262_144)
    shapes = TeacherShapes.quick() if options.quick else full
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        artefacts = build(Path(scratch), shapes)
        kinds = {name: Kind(artefacts, shapes, place, overrides) for name, overrides in KINDS.items()}
        runs: dict[str, Callable[[], None]] = {}
        for name, kind in kinds.items():
            kind.work = stack.enter_context(CacheWork.open(artefacts.cache_work, kind.description))
            runs[f"bare {name}"] = kind.bare
            runs[f"ours {name}"] = partial(kind.stage, stack.enter_context(kind.job.begin(place)))
        parts = kinds["balanced_all"]
        runs["encoder"] = partial(parts.bare, with_head=False)
        runs["computed"] = parts.compute
        runs["published"] = parts.publish
        memory = {name: peak_memory(device, run) for name, run in runs.items() if name in MEASURED}
        times = interleaved({name: partial(seconds, device, run) for name, run in runs.items()}, rounds(options))
    ratios = {f"stage_one_{name}": ratio(times[f"bare {name}"], times[f"ours {name}"]) for name in kinds}
    print_table(
        f"{shapes.shards} shards of {shapes.shard_tokens:,} tokens, {device}, {threads} threads",
        ["", "bare, tokens/s", "stage one, tokens/s", "bytes per token"],
        [
            [
                name,
                *(
                    Spread.of([kind.seen_tokens / t for t in times[f"{who} {name}"]]).shown(0)
                    for who in ("bare", "ours")
                ),
                f"{kind.bytes / kind.seen_tokens:,.0f}",
            ]
            for name, kind in kinds.items()
        ],
    )
    steps = ["encoder", "bare balanced_all", "computed", "published"]
    names = ["the encoder", "logits", "selection and coding", "checks, compression, publication"]
    medians = [Spread.of(times[step]).median for step in steps]
    added = [medians[0], *(after - before for before, after in pairwise(medians))]
    print_table(
        "where the time goes: balanced, all positions, without overlap",
        ["part", "share"],
        [[name, f"{took / medians[-1]:.1%}"] for name, took in zip(names, added, strict=True)],
    )
    print_table(
        "memory beside the teacher, at most",
        ["", "MiB"],
        [[name, f"{size:,.0f}"] for name, size in memory.items()],
    )
    finish(ratios, GOALS["cpu" if device == "cpu" else "cuda"], options.json, quick=options.quick)


if __name__ == "__main__":
    main()
