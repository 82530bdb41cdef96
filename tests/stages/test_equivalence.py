"""The proof that holds it all together: training from the cache is training with the teacher in the loop."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import cache_teacher, init_student
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, Wanted, decoder_for
from stages.heads import Head
from stages.losses import IGNORED
from stages.models import load_masked_lm
from stages.training.distiller import Distiller
from storage import CacheReader

BATCH, STEPS = 8, 3


def cached(make_project, **cache):
    project = make_project(cache=cache, train={"batch_size": BATCH, "micro_batch_size": BATCH})
    project.run(cache_teacher)
    project.run(init_student, "half")
    return project


def cached_gradients(project, *, kd_source, micro):
    """Loss and gradient of each step, from the cache alone."""
    reader = CacheReader(project.artefacts.cache)
    project.set(
        cache=project.cache_overrides, train={"batch_size": BATCH, "micro_batch_size": micro, "kd_source": kd_source}
    )
    student = load_masked_lm(project.artefacts.student_init("half"))
    distiller = Distiller(
        student, project.config.train, decoder_for(reader.description, "train"), Head.load(reader.folder)
    )
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), BATCH, 0, 1)
    batches = list(
        PlannedBatches(
            reader, plan, wanted=Wanted(hidden=True, logits=True), micro_batch_size=micro, first_step=0, last_step=STEPS
        )
    )
    results = []
    for step in range(STEPS):
        group = batches[step * BATCH // micro : (step + 1) * BATCH // micro]
        counts = torch.tensor(
            [sum(b["row_index"].numel() for b in group), sum(b["labels"].numel() for b in group)]
        ).float()
        distiller.zero_grad()
        loss = 0.0
        for batch in group:
            total, _ = distiller(batch, counts)
            total.backward()
            loss += float(total.detach())
        results.append((loss, gradient_of(student)))
    return results


def online_gradients(project, *, micro):
    """The original recipe: the teacher runs beside the student on the same masked batches; dense losses, as published."""
    reader = CacheReader(project.artefacts.cache)
    teacher = load_masked_lm(project.artefacts.teacher)
    student = load_masked_lm(project.artefacts.student_init("half"))
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), BATCH, 0, 1)
    weights, temperature = project.config.train.weights, project.config.train.temperature
    inputs = PlannedBatches(
        reader, plan, wanted=Wanted(hidden=False, logits=False), micro_batch_size=BATCH, first_step=0, last_step=STEPS
    )
    results = []
    for batch in inputs:
        student.zero_grad()
        loss = 0.0
        rows, masked = batch["row_index"].numel(), batch["labels"].numel()
        labels = torch.full((batch["input_ids"].numel(),), IGNORED)
        labels[batch["row_index"][:masked]] = batch["labels"]
        labels = labels.view_as(batch["input_ids"])
        for begin in range(0, BATCH, micro):
            part = slice(begin, begin + micro)
            arguments = {"input_ids": batch["input_ids"][part], "attention_mask": batch["attention_mask"][part]}
            real = batch["attention_mask"][part] == 1
            with torch.no_grad():
                theirs = teacher(**arguments, output_hidden_states=True)
            ours = student(**arguments, output_hidden_states=True)
            kd = F.kl_div(
                F.log_softmax(ours.logits[real] / temperature, -1),
                F.softmax(theirs.logits[real] / temperature, -1),
                reduction="sum",
            )
            mlm = F.cross_entropy(ours.logits[real], labels[part][real], ignore_index=IGNORED, reduction="sum")
            target = torch.ones(int(real.sum()))
            cos = F.cosine_embedding_loss(
                ours.hidden_states[-1][real], theirs.hidden_states[-1][real], target, reduction="sum"
            )
            total = weights.kd * temperature**2 * kd / rows + weights.mlm * mlm / masked + weights.cos * cos / rows
            total.backward()
            loss += float(total.detach())
        results.append((loss, gradient_of(student)))
    return results


def gradient_of(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def distance(some, others):
    """Largest relative L2 distance over the steps."""
    return max(float((a[1] - b[1]).norm() / b[1].norm()) for a, b in zip(some, others, strict=True))


def build(make_project, **cache):
    project = cached(make_project, **cache)
    project.cache_overrides = cache
    return project


@pytest.mark.parametrize(("kd_source", "top_k"), [("hidden", 8), ("top_k", "all")])
def test_a_lossless_cache_gives_the_loss_and_gradients_of_the_teacher_in_the_loop(
    make_project, capsys, kd_source, top_k
):
    vocabulary = Head.of(load_masked_lm(make_project().artefacts.teacher)).vocabulary_size
    project = build(make_project, preset="lossless", top_k=vocabulary if top_k == "all" else top_k)
    online = online_gradients(project, micro=BATCH)
    noise = distance(online_gradients(project, micro=2), online)
    for micro in (BATCH, 2):
        offline = cached_gradients(project, kd_source=kd_source, micro=micro)
        found = distance(offline, online)
        with capsys.disabled():
            sys.stdout.write(
                f"\nlossless, {kd_source}, micro-batches of {micro}: gradient differs by {found:.1e}, two online runs by {noise:.1e}\n"
            )
        assert found <= 1e-5
        np.testing.assert_allclose([a for a, _ in offline], [b for b, _ in online], rtol=1e-5)


@pytest.mark.parametrize(("preset", "limit"), [("exact", 1e-3), ("balanced", 2e-2)])
def test_a_compressed_cache_gives_nearly_the_gradients_of_the_teacher_in_the_loop(make_project, capsys, preset, limit):
    project = build(make_project, preset=preset, top_k=16)
    found = distance(cached_gradients(project, kd_source="hidden", micro=BATCH), online_gradients(project, micro=BATCH))
    with capsys.disabled():
        sys.stdout.write(f"\n{preset}, through the head: gradient differs by {found:.1e} (limit {limit:.0e})\n")
    assert 0 < found <= limit
