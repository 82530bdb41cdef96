"""A training step from the cache against a plain MLM step, and against distillation with the teacher in the loop.

A teacher in BERT-base's shapes and a student in DistilBERT's, both with random weights; the caches are what `cache-teacher` makes of
that teacher. All contenders train one student on the same batches, in one dtype, with the same optimizer:

    mlm                masked-language-model loss alone, the head at masked positions only
    small_masked       this project: preset `small` (ids drawn from the teacher's distribution), masked positions cached
    small_all          the same, all positions cached
    balanced_masked    this project: preset `balanced`, KD through the teacher's head and cosine, masked positions cached
    balanced_all       the same, all positions cached
    online             the teacher runs beside the student, without gradients: KL of full logits at all positions, and MLM
    online_cosine      the same with the cosine loss of the last hidden states

A step is everything from asking for a batch to the updated weights. What the cache's contenders wait for batches is printed apart.

Memory is what a process of its own takes at its peak beyond what it had after its imports; for the cache's contender, the process that
reads shards ahead is added. On a CPU in float32 with all cores; on a GPU in bfloat16 autocast, its memory by torch's allocator.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from measure import Spread, arguments, finish, forget_peak, interleaved, memory, ratio, rounds
from teacher_project import TeacherShapes, build, configured, describe, teacher_in_the_loop
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline.environment import quiet_libraries
from pipeline.summary import print_table
from stages.batch_plan import BatchPlan
from stages.batches import Batch, PlannedBatches, decoder_for
from stages.config import Config, StudentConfig
from stages.context import Artefacts
from stages.forward_pass import encoder_hidden
from stages.heads import Head
from stages.models import load_model_config
from stages.sequences import TokenStore
from stages.sharing import Place
from stages.students import build_student
from stages.teacher_job import TeacherJob
from stages.training.distiller import Distiller, wanted_by
from storage import CacheReader, CacheWork

GOALS = {
    "train_small_all_vs_online": ">= 1.45",
    "train_balanced_all_vs_online": ">= 1.30",
    "train_balanced_masked_vs_online": ">= 2.0",
    "train_small_masked_vs_mlm": ">= 0.97",
    "memory_vs_online": "<= 0.5",
}
BALANCED = ["cache.preset=balanced"]
SMALL = ["cache.preset=small", "train.kd_source=draws", "train.weights.cos=0"]
MASKED = ["cache.positions=masked"]
KINDS = {
    "mlm": [*SMALL, *MASKED, "train.weights.kd=0"],
    "small_masked": [*SMALL, *MASKED],
    "small_all": SMALL,
    "balanced_masked": [*BALANCED, *MASKED],
    "balanced_all": BALANCED,
}
CACHES = ("small_masked", "small_all", "balanced_masked", "balanced_all")
ONLINE = {"online": False, "online_cosine": True}
TEMPERATURE = 2.0
MEASURED_MEMORY = ("balanced_all", "online_cosine")
"""All that a quick run measures."""
STEPS_OF_MEMORY = 3


@dataclass(frozen=True)
class Shapes:
    """Of teacher, student and batches."""

    teacher: TeacherShapes
    student_layers: int
    sequences: int
    """Of a batch: 4,096 tokens, or four times as many on a GPU."""

    @classmethod
    def chosen(cls, *, quick: bool) -> Shapes:
        if quick:
            return cls(TeacherShapes.quick(), 1, 8)
        return cls(TeacherShapes(shards=4, shard_tokens=8192), 6, 42 * (4 if torch.cuda.is_available() else 1))


def settings(kind: str) -> Config:
    """The parameters of a contender that reads a cache."""
    return configured([*KINDS[kind], "masking.probability=0.15", "cache.precision=float32"])


def make_caches(folder: Path, shapes: Shapes) -> None:
    """Teacher and tokens in `folder`, and below it a cache for each kind."""
    artefacts = build(folder, shapes.teacher)
    tokens = TokenStore.open(artefacts.tokens)
    for kind in CACHES:
        config = settings(kind)
        description = describe(config, artefacts, shapes.teacher)
        job = TeacherJob(artefacts=artefacts, description=description, config=config)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with CacheWork.open(artefacts.cache_work, description) as work:
            work.add_folder("tokenizer", tokens.tokenizer_folder)
            with job.begin(Place(device=device, threads=torch.get_num_threads())) as compute:
                for shard in work.missing():
                    compute(shard)
                    work.take_in(shard)
            work.finish(folder / kind)


class Student:
    """The one that all contenders train, and its optimizer."""

    def __init__(self, folder: Path, shapes: Shapes, device: str) -> None:
        config = StudentConfig(
            architecture="distilbert",
            initialise="random",
            layers=shapes.student_layers,
            seed=0,
            dropout=0.1,
        )
        model = build_student(config, "student", load_model_config(Artefacts(project=folder).teacher))
        if device == "cpu":
            model.set_attn_implementation("eager")  # as train-student does for short sequences
        self.model = model.to(device).train()  # type: ignore[arg-type]
        self.device = device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6)

    def arithmetic(self) -> Any:
        """Where the forward pass is computed in."""
        return nullcontext() if self.device == "cpu" else torch.autocast("cuda", torch.bfloat16)

    def learn(self, loss: Tensor) -> None:
        """Backward pass and update."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class FromCache:
    """This project's step, or an MLM step over the same batches."""

    def __init__(self, kind: str, folder: Path, shapes: Shapes, student: Student) -> None:
        self.reader, self.student = CacheReader(folder / kind.replace("mlm", "small_masked")), student
        config = settings(kind).train
        through_head = config.kd_source == "hidden"
        self.distiller = Distiller(
            student.model,
            config,
            decoder_for(self.reader.description, "train"),
            Head.load(self.reader.folder) if through_head else None,
        ).to(student.device)
        self.batches = batches(self.reader, shapes, wanted_by(config))
        self.waited: list[float] = []

    def step(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        batch = to_device(next(self.batches), self.student.device)
        waited = time.perf_counter() - started
        counts = torch.tensor([batch["row_index"].numel(), batch["labels"].numel()], dtype=torch.float32)
        with self.student.arithmetic():
            loss, _ = self.distiller(batch, counts.to(self.student.device))
        self.student.learn(loss)
        took = synchronised(self.student.device) - started
        self.waited.append(waited / took)
        return took


class Online:
    """The original recipe, as well as plain PyTorch does it: only real positions, only what the losses read."""

    def __init__(self, folder: Path, shapes: Shapes, student: Student, *, cosine: bool) -> None:
        self.teacher = teacher_in_the_loop(folder, student.device)
        self.student, self.cosine = student, cosine
        self.weights = settings("balanced_all").train.weights
        reader = CacheReader(folder / "balanced_all")
        self.batches = batches(reader, shapes, wanted_by(settings("mlm").train))

    def step(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        batch = to_device(next(self.batches), self.student.device)
        with self.student.arithmetic():
            loss = self.loss(batch)
        self.student.learn(loss)
        return synchronised(self.student.device) - started

    def loss(self, batch: Batch) -> Tensor:
        """KD and MLM, and cosine where it is wanted."""
        rows, labels = batch["row_index"], batch["labels"]
        with torch.no_grad():
            their_hidden = hidden_of(self.teacher, batch)[rows]
            their_logits = Head.of(self.teacher).logits(their_hidden)
            target = F.log_softmax(their_logits.float() / TEMPERATURE, -1)
            del their_logits
        our_hidden = hidden_of(self.student.model, batch)[rows]
        logits = Head.of(self.student.model).logits(our_hidden).float()
        kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), target, reduction="batchmean", log_target=True)
        loss = self.weights.kd * TEMPERATURE**2 * kd
        loss = loss + self.weights.mlm * F.cross_entropy(logits[: len(labels)], labels)
        if self.cosine:
            cos = 1 - F.cosine_similarity(our_hidden.float(), their_hidden.float(), dim=-1)
            loss = loss + self.weights.cos * cos.mean()
        return loss


def batches(reader: CacheReader, shapes: Shapes, wanted: Any) -> Iterator[Batch]:
    """Without end, in the same order for all caches of the same tokens."""
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), shapes.sequences, 0, 1)
    return iter(
        PlannedBatches(
            reader,
            plan,
            wanted=wanted,
            micro_batch_size=shapes.sequences,
            first_step=0,
            last_step=1_000_000,
            pin_memory=torch.cuda.is_available(),
        )
    )


def hidden_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(sequences x tokens, H)."""
    return encoder_hidden(model, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)


def to_device(batch: Batch, device: str) -> Batch:
    """The batch where it is needed."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def synchronised(device: str) -> float:
    """The time, once the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def contender(name: str, folder: Path, shapes: Shapes, student: Student) -> FromCache | Online:
    """By its name."""
    if name in ONLINE:
        return Online(folder, shapes, student, cosine=ONLINE[name])
    return FromCache(name, folder, shapes, student)


def peak_memory(name: str, folder: Path, shapes: Shapes) -> int:
    """Bytes of a few steps, in this process and those that it starts, beyond what it has before: run in a process of its own."""
    transformers_logging.disable_progress_bar()
    forget_peak()
    before = memory("VmRSS")
    student = Student(folder, shapes, "cpu")
    of_name = contender(name, folder, shapes, student)
    for _ in range(STEPS_OF_MEMORY):
        of_name.step()
    started = sum(memory("VmHWM", child.pid) for child in psutil.Process().children(recursive=True))
    return memory("VmHWM") - before + started


def peak_gpu_memory(name: str, folder: Path, shapes: Shapes) -> int:
    """The same of a GPU's memory, of which there is nothing before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    of_name = contender(name, folder, shapes, Student(folder, shapes, "cuda"))
    for _ in range(STEPS_OF_MEMORY):
        of_name.step()
    return torch.cuda.max_memory_allocated()


def seconds_of_step(of_name: FromCache | Online) -> float:
    """The mean of as many steps as a clock can tell apart."""
    count = 10 if of_name.student.device != "cpu" else 1
    return sum(of_name.step() for _ in range(count)) / count


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet_libraries(debug=False)
    transformers_logging.disable_progress_bar()
    shapes = Shapes.chosen(quick=options.quick)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [*KINDS, *ONLINE]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_caches(folder, shapes)
        peaks = {}
        for name in MEASURED_MEMORY if options.quick else names:
            if device == "cuda":
                peaks[name] = peak_gpu_memory(name, folder, shapes)
                continue
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                peaks[name] = pool.submit(peak_memory, name, folder, shapes).result()
        student = Student(folder, shapes, device)
        contenders = {name: contender(name, folder, shapes, student) for name in names}
        runs: dict[str, Callable[[], float]] = {name: partial(seconds_of_step, c) for name, c in contenders.items()}
        times = interleaved(runs, rounds(options))
        waits = {name: c.waited[1:] for name, c in contenders.items() if isinstance(c, FromCache)}
        runs.clear()
        contenders.clear()
    print_table(
        f"a step of {shapes.sequences} sequences, {device}, {os.cpu_count()} cores",
        ["", "milliseconds, median (range)", "of which waiting for the batch", "peak memory, MB"],
        [
            [
                name,
                Spread.of([1e3 * seconds for seconds in times[name]]).shown(1),
                f"{100 * Spread.of(waits[name]).median:.2f} %" if name in waits else "-",
                f"{peaks[name] / 1e6:,.0f}" if name in peaks else "-",
            ]
            for name in names
        ],
    )
    ratios = {
        "train_small_all_vs_online": ratio(times["online"], times["small_all"]),
        "train_balanced_all_vs_online": ratio(times["online_cosine"], times["balanced_all"]),
        "train_balanced_masked_vs_online": ratio(times["online_cosine"], times["balanced_masked"]),
        "train_small_masked_vs_mlm": ratio(times["mlm"], times["small_masked"]),
        "train_balanced_masked_vs_mlm": ratio(times["mlm"], times["balanced_masked"]),
        "memory_vs_online": Spread.of([peaks["balanced_all"] / peaks["online_cosine"]]),
        "data_wait": Spread.of([Spread.of(waited).median for waited in waits.values()]),
    }
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
