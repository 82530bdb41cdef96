"""Losses on a fine-tuned teacher's answers, beside slow references in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.config import DistillationConfig
from stages.config.finetune import DistillationWeights
from stages.finetuning.distillation import DistillationLoss, hidden_loss, kd_loss

ROWS, CLASSES, TOKENS = 4, 3, 6
LENGTHS = torch.tensor([6, 2, 4, 3])


def logits(*shape, seed):
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mask():
    return (torch.arange(TOKENS) < LENGTHS[:, None]).long()


def loss_of(head="classification", *, scores=False, temperature=2.0, **weights):
    weights = DistillationWeights(**{"kd": 0.0, "task": 0.0, "hidden": 0.0, **weights})
    config = DistillationConfig(temperature=temperature, weights=weights)
    return DistillationLoss(config=config, head=head, scores=scores, token_types=False)


def reference_kl(student, teacher, temperature):
    """`T^2 sum p (log p - log q)` of one row, as its definition has it."""
    student, teacher = (np.asarray(values, np.float64) / temperature for values in (student, teacher))
    p, q = (np.exp(values) / np.exp(values).sum() for values in (teacher, student))
    return temperature**2 * float((p * (np.log(p) - np.log(q))).sum())


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_loss_on_classes_is_hintons_with_its_gradient(temperature):
    student, teacher = logits(ROWS, CLASSES, seed=0).requires_grad_(), logits(ROWS, CLASSES, seed=1)
    found = kd_loss(student, teacher, temperature)
    expected = np.mean([reference_kl(*row, temperature) for row in zip(student.detach(), teacher, strict=True)])
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    by_hand = (
        temperature * (F.softmax(student.detach() / temperature, -1) - F.softmax(teacher / temperature, -1)) / ROWS
    )
    torch.testing.assert_close(student.grad, by_hand, atol=1e-6, rtol=1e-5)


def test_the_loss_on_answers_is_the_mean_over_where_they_begin_and_end_and_padding_has_no_part_in_it():
    student = [logits(ROWS, TOKENS, seed=seed).requires_grad_() for seed in (0, 1)]
    teacher = logits(ROWS, TOKENS, 2, seed=2)
    found = loss_of("answers", kd=1.0).of(student, {"token_logits": teacher, "attention_mask": mask()}, None)
    expected = [
        reference_kl(student[part].detach()[row, :length], teacher[row, :length, part], 2.0)
        for part in (0, 1)
        for row, length in enumerate(LENGTHS.tolist())
    ]
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    found.backward()
    for part in student:
        assert not part.grad[mask() == 0].any()
        assert part.grad.isfinite().all()


def test_the_loss_on_scores_is_the_squared_difference():
    student, teacher = logits(ROWS, 1, seed=0), logits(ROWS, 1, seed=1)
    found = loss_of(scores=True, kd=0.5).of([student], {"class_logits": teacher}, None)
    torch.testing.assert_close(found, 0.5 * ((student - teacher) ** 2).mean())


@pytest.mark.parametrize("head", ["classification", "scores", "answers"])
def test_rows_without_a_label_have_no_part_in_the_tasks_own_loss(head):
    labelled = torch.tensor([1.0, 0.0, 1.0, 0.0])
    some = labelled == 1
    if head == "answers":
        student = [logits(ROWS, TOKENS, seed=seed) for seed in (0, 1)]
        batch = {"start_positions": torch.tensor([0, 1, 2, 0]), "end_positions": torch.tensor([3, 1, 3, 0])}
        losses = [
            F.cross_entropy(part[some], batch[name][some])
            for part, name in zip(student, ("start_positions", "end_positions"), strict=True)
        ]
        expected = (losses[0] + losses[1]) / 2
    elif head == "scores":
        student, batch = [logits(ROWS, 1, seed=0)], {"labels": torch.tensor([0.5, 9.0, 3.0, 9.0])}
        expected = F.mse_loss(student[0][some, 0], batch["labels"][some])
    else:
        student, batch = [logits(ROWS, CLASSES, seed=0)], {"labels": torch.tensor([2, 0, 1, 0])}
        expected = F.cross_entropy(student[0][some], batch["labels"][some])
    loss = loss_of("answers" if head == "answers" else "classification", scores=head == "scores", task=1.0)
    torch.testing.assert_close(loss.of(student, {**batch, "labelled": labelled}, None), expected)
    assert float(loss.of(student, {**batch, "labelled": torch.zeros(ROWS)}, None)) == 0.0


def test_hidden_states_that_point_the_same_way_cost_nothing_and_padding_is_not_looked_at():
    teacher = logits(ROWS, TOKENS, 8, seed=0)
    student = torch.where(mask()[..., None] == 1, 2 * teacher, -teacher)
    assert float(hidden_loss(student, teacher, mask())) == pytest.approx(0.0, abs=1e-6)
    assert float(hidden_loss(-student, teacher, mask())) == pytest.approx(2.0, abs=1e-6)


def test_terms_add_up_by_their_weights():
    student, teacher = [logits(ROWS, CLASSES, seed=0)], logits(ROWS, CLASSES, seed=1)
    states = [logits(ROWS, TOKENS, 8, seed=seed) for seed in (2, 3)]
    batch = {
        "class_logits": teacher,
        "labels": torch.tensor([0, 1, 2, 0]),
        "labelled": torch.ones(ROWS),
        "attention_mask": mask(),
        "teacher_hidden": states[0],
    }
    whole = loss_of(kd=0.3, task=0.5, hidden=0.2).of(student, batch, states[1])
    parts = [
        loss_of(kd=0.3).of(student, batch, None),
        loss_of(task=0.5).of(student, batch, None),
        0.2 * hidden_loss(states[1], states[0], mask()),
    ]
    torch.testing.assert_close(whole, sum(parts))
