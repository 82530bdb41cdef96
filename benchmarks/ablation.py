"""What the whole ablation costs from one cache, the cache included, against the same five runs with the teacher in the loop.

The runs are DistilBERT's (Sanh et al. 2019, table 4): full; no KD; no cosine; no MLM; random weights. A teacher in BERT-base's shapes and a
student in DistilBERT's, with random weights; one mask variant for each epoch, so that nothing of the teacher's work is used in two epochs.

An epoch over N tokens costs, whatever N and the number of epochs:

    ours      the teacher's pass over N tokens, stored (`balanced`, all positions), and N tokens of each of the five runs from the cache
    online    N tokens of each of the five runs, each with the teacher beside the student

So seconds per token say it all. In each round all of these are timed one after the other: a step of each run from the cache and online, all
on the same sequences, and a shard of the cache. A step is everything from asking for a batch to the updated weights; a shard is
everything from reading tokens to files whose digests are taken: masks, forward pass, selection, coding, writing. Starting
processes and loading models are left out on both sides, and so are validations, which are the same on both. Random weights cost what
copied ones do: that run is timed as `full` is, and counted twice.

Online runs do what their losses need, in plain PyTorch, and no more:

    full, random weights    the teacher with its head; KD at all positions, MLM, cosine
    no KD                   the teacher without its head; MLM at masked positions, cosine
    no cosine, no MLM       as full, without that term

The FLOP limit is what the ratio would be if time were FLOPs of matrix products alone: with sparse targets nothing of the teacher is
left in a run from the cache, through the head (`kd_source: hidden`, what is measured here) its output projection is. On a CPU in
float32, on a GPU in bfloat16.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import ROUNDS, Spread, arguments, finish, interleaved, ratio, rounds
from teacher_project import build, configured, describe, teacher_in_the_loop
from torch import Tensor
from train_student import TEMPERATURE, Shapes, Student, batches, hidden_of, synchronised, to_device
from transformers.utils import logging as transformers_logging

from pipeline.environment import quiet_libraries
from pipeline.summary import print_table
from stages.batches import Batch, decoder_for
from stages.config import Config
from stages.context import Artefacts
from stages.heads import Head
from stages.sequences import TokenStore
from stages.sharing import Place
from stages.teacher_job import TeacherJob
from stages.training.distiller import Distiller, wanted_by
from storage import CacheReader, CacheWork, ShardId

GOALS = {"ablation_vs_online": "> 1"}
RUNS: dict[str, list[str]] = {
    "full": [],
    "no KD": ["train.weights.kd=0"],
    "no cosine": ["train.weights.cos=0"],
    "no MLM": ["train.weights.mlm=0"],
}
TIMES = {"full": 2}
"""How many runs of the five one stands for: random weights cost what copied ones do."""
CACHE = "teacher's pass, cached"
MASKED_SHARE = 0.15
SHARD_TOKENS = 4096
"""Of a shard that is timed: about a step's tokens; sixteen times as many on a GPU."""


def settings(run: str) -> Config:
    """The parameters of a run."""
    return configured(
        ["cache.preset=balanced", f"masking.probability={MASKED_SHARE}", "cache.precision=float32", *RUNS[run]]
    )


def tokens_of(batch: Batch) -> int:
    """Without padding."""
    return int(batch["attention_mask"].sum())


class FromCache:
    """A step of a run from the cache, as `train-student` takes it."""

    def __init__(self, run: str, folder: Path, shapes: Shapes, student: Student) -> None:
        reader, self.student, train = CacheReader(folder / "cache"), student, settings(run).train
        head = Head.load(reader.folder) if train.reads_teacher_logits else None
        self.distiller = Distiller(student.model, train, decoder_for(reader.description, "train"), head)
        self.distiller.to(student.device)
        self.batches = batches(reader, shapes, wanted_by(train))

    def step(self) -> float:
        """Seconds per token."""
        started = time.perf_counter()
        loaded = next(self.batches)
        tokens, batch = tokens_of(loaded), to_device(loaded, self.student.device)
        counts = torch.tensor([batch["row_index"].numel(), batch["labels"].numel()], dtype=torch.float32)
        with self.student.arithmetic():
            loss, _ = self.distiller(batch, counts.to(self.student.device))
        self.student.learn(loss)
        return (synchronised(self.student.device) - started) / tokens


class Online:
    """A step of a run with the teacher in the loop, as well as plain PyTorch does it."""

    def __init__(self, run: str, folder: Path, shapes: Shapes, student: Student) -> None:
        self.student, self.weights = student, settings(run).train.weights
        self.teacher = teacher_in_the_loop(folder, student.device)
        mlm_alone = settings("full").train
        mlm_alone = replace(mlm_alone, weights=replace(mlm_alone.weights, kd=0.0, cos=0.0))
        self.batches = batches(CacheReader(folder / "cache"), shapes, wanted_by(mlm_alone))

    def step(self) -> float:
        """Seconds per token."""
        started = time.perf_counter()
        loaded = next(self.batches)
        tokens, batch = tokens_of(loaded), to_device(loaded, self.student.device)
        with self.student.arithmetic():
            loss = self.loss(batch)
        self.student.learn(loss)
        return (synchronised(self.student.device) - started) / tokens

    def loss(self, batch: Batch) -> Tensor:
        """The terms that have a weight; labelled rows come first."""
        rows, labels, weights = batch["row_index"], batch["labels"], self.weights
        with torch.no_grad():
            their_hidden = hidden_of(self.teacher, batch)[rows]
            target = None
            if weights.kd > 0:
                their_logits = Head.of(self.teacher).logits(their_hidden)
                target = F.log_softmax(their_logits.float() / TEMPERATURE, -1)
                del their_logits
        our_hidden = hidden_of(self.student.model, batch)[rows]
        logits = Head.of(self.student.model).logits(our_hidden if weights.kd > 0 else our_hidden[: len(labels)]).float()
        loss = logits.new_zeros(())
        if target is not None:
            kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, reduction="batchmean", log_target=True)
            loss = loss + weights.kd * TEMPERATURE**2 * kd
        if weights.mlm > 0:
            loss = loss + weights.mlm * F.cross_entropy(logits[: len(labels)], labels)
        if weights.cos > 0:
            cos = 1 - F.cosine_similarity(our_hidden.float(), their_hidden.float(), dim=-1)
            loss = loss + weights.cos * cos.mean()
        return loss


class TeacherPass:
    """Shard after shard of a cache, as `cache-teacher` makes them in one process."""

    def __init__(self, folder: Path, shapes: Shapes, device: str, scope: ExitStack) -> None:
        artefacts, config, self.device = Artefacts(project=folder), settings("full"), device
        size = SHARD_TOKENS if device == "cpu" else 16 * SHARD_TOKENS
        teacher = replace(shapes.teacher, shards=ROUNDS + 1, shard_tokens=min(size, shapes.teacher.shard_tokens))
        self.description = describe(config, artefacts, teacher)
        self.lengths = TokenStore.open(artefacts.tokens).split("train").lengths
        self.work = scope.enter_context(CacheWork.open(artefacts.cache_work, self.description))
        job = TeacherJob(artefacts=artefacts, description=self.description, config=config)
        self.compute = scope.enter_context(job.begin(Place(device=device, threads=torch.get_num_threads())))
        self.missing: Iterator[ShardId] = iter(self.work.missing())

    def shard(self) -> float:
        """Seconds per token of the next one."""
        shard = next(self.missing)
        start, count = self.description.span(shard)
        started = time.perf_counter()
        self.compute(shard)
        self.work.take_in(shard)
        took = synchronised(self.device) - started
        return took / int(self.lengths[start : start + count].sum())


def make_cache(folder: Path, shapes: Shapes, device: str) -> None:
    """Teacher and tokens in `folder`, and the cache that the runs read."""
    artefacts = build(folder, shapes.teacher)
    config = settings("full")
    description = describe(config, artefacts, shapes.teacher)
    job = TeacherJob(artefacts=artefacts, description=description, config=config)
    with CacheWork.open(artefacts.cache_work, description) as work:
        work.add_folder("tokenizer", TokenStore.open(artefacts.tokens).tokenizer_folder)
        with job.begin(Place(device=device, threads=torch.get_num_threads())) as compute:
            for shard in work.missing():
                compute(shard)
                work.take_in(shard)
        work.finish(folder / "cache")


def flop_limits(shapes: Shapes) -> dict[str, float]:
    """Online by ours in FLOPs of matrix products, attention's own left out: 2 per weight and token forward, 6 with the backward pass."""
    teacher = shapes.teacher
    block = 12 * teacher.hidden_size**2
    head = teacher.hidden_size * teacher.vocabulary_size + teacher.hidden_size**2
    their_blocks, their_head = 2 * teacher.layers * block, 2 * head
    our_blocks, our_head = 6 * shapes.student_layers * block, 6 * head
    learns = {run: our_blocks + our_head * (MASKED_SHARE if run == "no KD" else 1) for run in RUNS}
    reads_logits = {run: run != "no KD" for run in RUNS}
    online = sum(TIMES.get(run, 1) * (learns[run] + their_blocks + reads_logits[run] * their_head) for run in RUNS)
    sparse = their_blocks + their_head + sum(TIMES.get(run, 1) * learns[run] for run in RUNS)
    through_head = sparse + sum(TIMES.get(run, 1) * reads_logits[run] * their_head for run in RUNS)
    return {"sparse targets": online / sparse, "through the head": online / through_head}


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet_libraries(debug=False)
    transformers_logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = Shapes.chosen(quick=options.quick)
    if device == "cuda" and not options.quick:  # enough tokens for the shards that are timed
        shapes = replace(shapes, teacher=replace(shapes.teacher, shards=8, shard_tokens=16 * SHARD_TOKENS))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as scope:
        folder = Path(scratch)
        make_cache(folder, shapes, device)
        student = Student(folder, shapes, device)
        ours = {run: FromCache(run, folder, shapes, student) for run in RUNS}
        online = {run: Online(run, folder, shapes, student) for run in RUNS}
        teacher_pass = TeacherPass(folder, shapes, device, scope)
        contenders: dict[str, Callable[[], float]] = {}
        for run in RUNS:
            contenders[f"{run}, cache"] = partial(mean_of_steps, ours[run])
            contenders[f"{run}, online"] = partial(mean_of_steps, online[run])
        contenders[CACHE] = teacher_pass.shard
        times = interleaved(contenders, rounds(options))
        contenders.clear()
        ours.clear()
        online.clear()
    matrices = {
        way: [sum(TIMES.get(run, 1) * times[f"{run}, {way}"][i] for run in RUNS) for i in range(rounds(options))]
        for way in ("cache", "online")
    }
    with_cache = [runs + made for runs, made in zip(matrices["cache"], times[CACHE], strict=True)]
    print_table(
        f"microseconds per token, {device}, {os.cpu_count()} cores: median (range)",
        ["", "from the cache", "teacher in the loop", "times as fast"],
        [
            *(
                [
                    run + (", and random weights: each" if run in TIMES else ""),
                    *(micro(times[f"{run}, {way}"]) for way in ("cache", "online")),
                    ratio(times[f"{run}, online"], times[f"{run}, cache"]).shown(),
                ]
                for run in RUNS
            ),
            [CACHE, micro(times[CACHE]), "-", "-"],
            [
                "all five, and the cache",
                micro(with_cache),
                micro(matrices["online"]),
                ratio(matrices["online"], with_cache).shown(),
            ],
        ],
    )
    for kind, limit in flop_limits(shapes).items():
        print(f"FLOP limit of the ratio, {kind}: {limit:.2f}")
    ratios = {
        "ablation_vs_online": ratio(matrices["online"], with_cache),
        "ablation_vs_online_without_cache": ratio(matrices["online"], matrices["cache"]),
        "cache_share": ratio(times[CACHE], with_cache),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


def mean_of_steps(contender: FromCache | Online) -> float:
    """Of as many steps as a clock can tell apart."""
    count = 1 if contender.student.device == "cpu" else 10
    return sum(contender.step() for _ in range(count)) / count


def micro(seconds: list[float]) -> str:
    """As the table has it."""
    return Spread.of([1e6 * value for value in seconds]).shown(1)


if __name__ == "__main__":
    main()
