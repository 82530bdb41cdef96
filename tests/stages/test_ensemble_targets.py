"""Targets of several teachers at once, against each apart."""

import pytest
import torch

from stages.divergences import DenseTargets
from stages.ensemble_targets import EnsembleTargets
from stages.losses import DrawnTargets, HiddenTargets, TopKTargets, distillation_loss
from tests.stages.test_losses import HIDDEN, random_head

ROWS, VOCABULARY, T = 9, 17, 2.0


def targets_of(kind, seed):
    """Of one teacher: what is known of random logits."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, generator=generator, dtype=torch.float64)
    head = random_head(VOCABULARY, generator)
    logits = head.logits(hidden)
    if kind == "hidden":
        return HiddenTargets(hidden, head)
    if kind == "dense":
        return DenseTargets(logits)
    if kind == "top_k":
        top, ids = logits.topk(4, -1)
        return TopKTargets(ids, top / T - (logits / T).logsumexp(-1, keepdim=True))
    p = (logits / T).softmax(-1)
    ids = torch.multinomial(p, 6, replacement=True, generator=generator)
    return DrawnTargets(ids, torch.full(ids.shape, 1 / 6, dtype=torch.float64), -(p * p.log()).sum(-1))


def student(seed=9):
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((ROWS, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    ]
    return made, torch.randint(VOCABULARY, (4,), generator=generator)


def loss_of(targets, *, mlm=0.0, mse=0.0, chunk=None):
    """The loss's sums, and the gradients of features, projection and bias."""
    (features, weight, bias), labels = student()
    weights = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64)
    loss = distillation_loss(
        features, weight, bias, labels=labels, targets=targets, temperature=T, kd_scale=0.7, mlm_scale=mlm,
        mse_scale=mse, row_weights=weights, chunk_rows=chunk,
    )  # fmt: skip
    return loss, torch.autograd.grad(loss.total, (features, weight, bias))


@pytest.mark.parametrize("chunk", [1, 4, None])
@pytest.mark.parametrize("shares", [(0.7, 0.3), (0.2, 0.5, 0.3)])
@pytest.mark.parametrize("kind", ["hidden", "dense", "top_k", "draws"])
def test_loss_and_gradients_are_the_weighted_sum_of_each_teachers(kind, shares, chunk):
    def members():
        return tuple(targets_of(kind, seed) for seed in range(len(shares)))

    together, gradients = loss_of(EnsembleTargets(shares, members()), chunk=chunk)
    apart = [loss_of(member, chunk=chunk) for member in members()]
    torch.testing.assert_close(together.total, sum(s * loss.total for s, (loss, _) in zip(shares, apart, strict=True)))
    torch.testing.assert_close(
        together.kd_sum, sum(s * loss.kd_sum for s, (loss, _) in zip(shares, apart, strict=True))
    )
    for number, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, sum(s * g[number] for s, (_, g) in zip(shares, apart, strict=True)))


def test_teachers_of_different_kinds_are_added_up_as_well():
    kinds, shares = ("hidden", "top_k", "draws"), (0.5, 0.25, 0.25)
    _, gradients = loss_of(EnsembleTargets(shares, tuple(targets_of(kind, 3) for kind in kinds)))
    apart = [loss_of(targets_of(kind, 3))[1] for kind in kinds]
    for number, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, sum(s * g[number] for s, g in zip(shares, apart, strict=True)))


def test_the_prediction_of_tokens_counts_once_however_many_teachers_there_are():
    shares = (0.6, 0.4)
    members = tuple(targets_of("hidden", seed) for seed in range(2))
    alone, _ = loss_of(members[0], mlm=1.5)
    together, _ = loss_of(EnsembleTargets(shares, members), mlm=1.5)
    torch.testing.assert_close(together.mlm_sum, alone.mlm_sum)


@pytest.mark.parametrize("chunk", [2, None])
def test_squared_differences_have_the_gradient_of_the_weighted_sum_and_the_value_of_the_mean_teacher(chunk):
    shares, members = (0.6, 0.4), tuple(targets_of("hidden", seed) for seed in range(2))
    together, gradients = loss_of(EnsembleTargets(shares, members), mse=0.3, chunk=chunk)
    apart = [loss_of(member, mse=0.3, chunk=chunk) for member in members]
    for number, gradient in enumerate(gradients):
        torch.testing.assert_close(gradient, sum(s * g[number] for s, (_, g) in zip(shares, apart, strict=True)))
    mean = sum(s * m.head.logits(m.hidden) for s, m in zip(shares, members, strict=True))
    torch.testing.assert_close(together.mse_sum, loss_of(DenseTargets(mean), mse=0.3)[0].mse_sum)


def test_the_loss_of_an_ensemble_is_the_distance_to_its_mixture_and_a_constant():
    shares, logits = (0.6, 0.4), [targets_of("dense", seed).logits for seed in range(2)]
    ensemble = EnsembleTargets(shares, tuple(map(DenseTargets, logits)))
    mixture = sum(s * (z / T).softmax(-1) for s, z in zip(shares, logits, strict=True))
    _, found = loss_of(ensemble)
    _, expected = loss_of(DenseTargets(T * mixture.log()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
