"""What a student loses by learning from the cache instead of from a teacher that runs beside it.

Real text (the embedded default: prose and docstrings of installed Python packages), a teacher that is trained on it, and one student:
the same initial weights, sequences, masks, order, steps, learning rate and arithmetic for all. No row has a cosine loss.

    online                        dense KL with the teacher in the loop, in plain PyTorch; twice, with two orders of the data
    exact, balanced: head         from the cache, the teacher's distribution rebuilt by its head (`kd_source: hidden`)
    balanced: rest, renormalise   from the 32 cached logits, with each treatment of the tail
    balanced: draws               the same with ids drawn from the tail
    small                         from 50 ids drawn from the whole distribution

Held-out figures over the test split, against the teacher's full distribution: KL at the training temperature and at 1, agreement of the
most likely id, masked-language-model loss, and how far confidence and accuracy are apart on masked tokens (expected calibration
error, Guo et al. 2017, 15 bins). With `--json FILE` a picture is written beside it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import torch.nn.functional as F
from measure import Spread, arguments, finish
from student_project import QUICK, ROOT, context_in, quiet
from torch import Tensor, nn
from transformers import PreTrainedModel, get_linear_schedule_with_warmup, set_seed

from pipeline.params import read_config
from pipeline.summary import print_table
from stages import cache_teacher, corpus, init_student, teacher, tokenize_corpus, train_student
from stages.batches import Batch, PlannedBatches, Wanted, decoder_for, split_batches
from stages.config import Config
from stages.context import Context
from stages.device import resolve_precision
from stages.forward_pass import encoder_hidden
from stages.heads import Head, row_chunks
from stages.losses import IGNORED
from stages.models import load_masked_lm
from stages.training.run import batch_plan
from storage import CacheReader

mpl.use("svg")

GOALS = {"kl_balanced_vs_online": "<= 1.01", "kl_small_vs_online": "<= 1.10"}
NO_COSINE = ["train.weights={kd: 5.0, mlm: 2.0, cos: 0.0}"]
RUNS: dict[str, list[str]] = {
    "exact: head": ["cache.preset=exact"],
    "balanced: head": ["cache.preset=balanced"],
    "balanced: rest": ["cache.preset=balanced", "train.kd_source=top_k"],
    "balanced: renormalise": ["cache.preset=balanced", "train.kd_source=top_k", "train.tail=renormalise"],
    "balanced: draws": [
        "cache.preset=balanced",
        "cache.draws=16",
        "cache.draw_from=tail",
        "cache.draw_temperature=2.0",
        "train.kd_source=top_k",
        "train.tail=draws",
    ],
    "small": ["cache.preset=small", "train.kd_source=draws"],
}
QUICK_RUNS = ("exact: head", "balanced: head", "small")
SEEDS = (0, 1)
BINS = 15


@dataclass(frozen=True)
class Project:
    """A folder with text, teacher and initial student, and a folder beside it for each cache."""

    folder: Path
    quick: bool

    def config(self, overrides: list[str]) -> Config:
        """The embedded default with some values changed."""
        return read_config(ROOT / "params.yaml", [*NO_COSINE, *(QUICK if self.quick else []), *overrides])

    def context(self, name: str = "") -> Context:
        """Of a cache's own folder, which shares text and models with the others."""
        project = self.folder / (name or "shared")
        shared = self.folder / "shared"
        if not project.is_dir():
            project.mkdir()
            (shared / "data").mkdir(parents=True, exist_ok=True)
            (shared / "models" / "student-init").mkdir(parents=True, exist_ok=True)
            if project != shared:
                (project / "data").symlink_to(shared / "data")
                (project / "models").mkdir()
                for model in ("teacher", "student-init"):
                    (project / "models" / model).symlink_to(shared / "models" / model)
        return context_in(project)

    def prepare(self) -> None:
        """Text, tokens, teacher, the cache that all are compared with, and the student's initial weights."""
        config, context = self.config([]), self.context()
        for stage in (corpus, tokenize_corpus, teacher):
            stage.run(config, context)
        self.cached(RUNS["exact: head"])

    def cached(self, overrides: list[str]) -> tuple[Config, Context]:
        """Where the cache of these parameters is, which is made where it is not yet there."""
        cache_keys = sorted(value for value in overrides if value.startswith("cache."))
        context = self.context("-".join(value.partition("=")[2].replace(".", "") for value in cache_keys))
        config = self.config(overrides)
        if not context.artefacts.cache.is_dir():
            cache_teacher.run(config, context)
        name = config.train.student
        if not context.artefacts.student_init(name).is_dir():
            init_student.run(config, context, name)
        return config, context


def offline(project: Project, overrides: list[str]) -> PreTrainedModel:
    """What `train-student` makes of a cache."""
    config, context = project.cached(overrides)
    train_student.run(config, context)
    return load_masked_lm(context.artefacts.student, device=context.device)


def online(project: Project, seed: int) -> PreTrainedModel:
    """The same training with the teacher in the loop, written out in plain PyTorch."""
    config, context = project.cached([*RUNS["exact: head"], f"train.seed={seed}"])
    train, device = config.train, context.device
    reader = CacheReader(context.artefacts.cache)
    frozen = load_masked_lm(context.artefacts.teacher, device=device).eval()
    student = load_masked_lm(context.artefacts.student_init(train.student), device=device)
    set_seed(train.seed)
    plan = batch_plan(config, reader)
    steps = train.steps or (train.epochs or 0) * plan.steps_per_epoch
    batches = PlannedBatches(
        reader,
        plan,
        wanted=Wanted(hidden=False, logits=False),
        micro_batch_size=train.batch_size,
        first_step=0,
        last_step=steps,
    )
    # As Trainer does: no weight decay for biases and norms, which have one dimension.
    parameters = list(student.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": train.weight_decay},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=train.learning_rate,
        betas=(train.adam_betas[0], train.adam_betas[1]),
        eps=train.adam_epsilon,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, train.warmup_steps, steps)
    half = resolve_precision(train.precision, device) == "bfloat16"
    kind = torch.device(device).type
    student.train()
    for batch in batches:
        moved = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(kind, torch.bfloat16) if half else nullcontext():
            loss = online_loss(moved, student, frozen, config)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, train.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student.eval()


def online_loss(batch: Batch, student: PreTrainedModel, frozen: PreTrainedModel, config: Config) -> Tensor:
    """KD and MLM over full logits, as published."""
    rows, labels, temperature = batch["row_index"], batch["labels"], config.train.temperature
    with torch.no_grad():
        theirs = Head.of(frozen).logits(hidden_of(frozen, batch)[rows]).float()
    ours = Head.of(student).logits(hidden_of(student, batch)[rows]).float()
    kd = F.kl_div(F.log_softmax(ours / temperature, -1), F.softmax(theirs / temperature, -1), reduction="batchmean")
    weights = config.train.weights
    return weights.kd * temperature**2 * kd + weights.mlm * F.cross_entropy(ours[: len(labels)], labels)


def hidden_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """(sequences x tokens, H)."""
    return encoder_hidden(model, batch["input_ids"], batch["attention_mask"]).flatten(0, 1)


@torch.inference_mode()
def held_out(project: Project, student: PreTrainedModel | None) -> dict[str, float]:
    """Figures over the test split of the cache `exact`; those of the teacher itself where there is no student."""
    _, context = project.cached(RUNS["exact: head"])
    reader = CacheReader(context.artefacts.cache)
    teacher_head, decoder = Head.load(reader.folder).to(context.device), decoder_for(reader.description, "test")
    temperature = project.config([]).train.temperature
    sums: dict[str, Tensor] = {}
    confidence, correct = [], []
    for batch in split_batches(reader, "test", batch_size=32, wanted=Wanted(hidden=True, logits=False)):
        moved = {name: tensor.to(context.device) for name, tensor in batch.items()}
        theirs, labels = decoder.hidden(moved), moved["labels"]
        ours = theirs if student is None else hidden_of(student, moved)[moved["row_index"]]
        head = teacher_head if student is None else Head.of(student)
        for part in row_chunks(len(ours), head.vocabulary_size):
            z, z_teacher, label = (
                head.logits(ours[part]).double(),
                teacher_head.logits(theirs[part]).double(),
                labels[part],
            )
            masked = label != IGNORED
            best = z.softmax(-1)[masked].max(-1)
            confidence.append(best.values)
            correct.append((best.indices == label[masked]).double())
            added = {
                "rows": torch.tensor(float(len(z))),
                "masked": masked.sum(),
                "kl": divergence(z_teacher, z, temperature).sum(),
                "kl_1": divergence(z_teacher, z, 1.0).sum(),
                "agreement": (z.argmax(-1) == z_teacher.argmax(-1)).sum(),
                "mlm": F.cross_entropy(z, label, ignore_index=IGNORED, reduction="sum"),
            }
            for name, value in added.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.cpu()
    means = {name: float(sums[name] / sums["rows"]) for name in ("kl", "kl_1", "agreement")}
    return means | {
        "mlm": float(sums["mlm"] / sums["masked"]),
        "calibration": calibration_error(torch.cat(confidence), torch.cat(correct)),
    }


def divergence(teacher_logits: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """KL (rows,) in nats."""
    log_p, log_q = ((x / temperature).log_softmax(-1) for x in (teacher_logits, logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence, by their share."""
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    error = 0.0
    for number in range(BINS):
        inside = bins == number
        if inside.any():
            error += float(inside.double().mean() * (confidence[inside].mean() - correct[inside].mean()).abs())
    return error


def all_students(project: Project) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and figures of each, one after the other."""
    yield "teacher", held_out(project, None)
    _, context = project.cached(RUNS["exact: head"])
    name = project.config([]).train.student
    yield (
        "before training",
        held_out(project, load_masked_lm(context.artefacts.student_init(name), device=context.device)),
    )
    for seed in SEEDS:
        yield f"online, seed {seed}", held_out(project, online(project, seed))
    for run in QUICK_RUNS if project.quick else RUNS:
        yield run, held_out(project, offline(project, RUNS[run]))


def draw(figures: Mapping[str, Mapping[str, float]], floor: float, file: Path) -> None:
    """Held-out KL of each student as bars, beside what two orders of the data differ by."""
    from matplotlib import pyplot as plt

    names = [name for name in figures if name not in ("teacher", "before training")]
    values = [figures[name]["kl"] for name in names]
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(names) + 1.2), layout="constrained")
    axes.barh(names, values, color=["#7a869a" if name.startswith("online") else "#2f6fb3" for name in names])
    axes.axvspan(
        values[0] - floor, values[0] + floor, color="#7a869a", alpha=0.25, label="two online runs differ by this"
    )
    axes.invert_yaxis()
    axes.set_xlabel("KL to the teacher on held-out text, nats per position at the training temperature")
    axes.bar_label(axes.containers[0], fmt="%.3f", padding=3)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__ or "")
    quiet()
    with tempfile.TemporaryDirectory() as scratch:
        project = Project(Path(scratch), quick=options.quick)
        project.prepare()
        figures = dict(all_students(project))
    columns: dict[str, tuple[str, Any]] = {
        "kl": ("KL at T", "{:.4f}"),
        "kl_1": ("KL at 1", "{:.4f}"),
        "agreement": ("agreement", "{:.4f}"),
        "mlm": ("MLM loss", "{:.4f}"),
        "calibration": ("calibration error", "{:.4f}"),
    }
    print_table(
        f"held-out text, {os.cpu_count()} cores",
        ["student", *(title for title, _ in columns.values())],
        [[name, *(form.format(of[key]) for key, (_, form) in columns.items())] for name, of in figures.items()],
    )
    first, second = (figures[f"online, seed {seed}"]["kl"] for seed in SEEDS)
    ratios = {
        "kl_exact_vs_online": Spread.of([figures["exact: head"]["kl"] / first]),
        "kl_balanced_vs_online": Spread.of([figures["balanced: head"]["kl"] / first]),
        "kl_small_vs_online": Spread.of([figures["small"]["kl"] / first]),
        "kl_online_seeds": Spread.of([second / first]),
    }
    if options.json is not None:
        draw(figures, abs(second - first), options.json.with_suffix(".svg"))
    finish(ratios, GOALS, options.json, quick=options.quick)


if __name__ == "__main__":
    main()
