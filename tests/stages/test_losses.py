"""The chunked loss against a dense float64 reference, value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.heads import Head
from stages.losses import IGNORED, HiddenTargets, TopKTargets, cosine_loss_sum, distillation_loss

HIDDEN = 6


def random_head(vocabulary: int, generator: torch.Generator) -> Head:
    steps = (
        {"op": "dense", "weight": "w", "bias": "b"},
        {"op": "activation", "name": "gelu"},
        {"op": "layer_norm", "weight": "g", "bias": "c", "eps": 1e-12},
        {"op": "projection", "weight": "e", "bias": "d"},
    )
    shapes = {
        "w": (HIDDEN, HIDDEN),
        "b": (HIDDEN,),
        "g": (HIDDEN,),
        "c": (HIDDEN,),
        "e": (vocabulary, HIDDEN),
        "d": (vocabulary,),
    }
    return Head(
        steps, {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    )


def dense_reference(student_logits, teacher_logits, labels, temperature, kd_scale, mlm_scale, support=None):
    """The formula, written out over full rows; with `support` (rows, k), KL over those ids and one bucket for the rest."""
    log_q = F.log_softmax(student_logits / temperature, -1)
    log_p = F.log_softmax(teacher_logits / temperature, -1)
    if support is not None:
        inside = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, support, value=True)

        def bucket(x):
            rest = x.exp().masked_fill(inside, 0.0).sum(-1, keepdim=True)
            kept = x.gather(1, support)
            return kept if support.shape[1] == x.shape[1] else torch.cat([kept, rest.log()], -1)

        log_q, log_p = bucket(log_q), bucket(log_p)
    kd = (log_p.exp() * (log_p - log_q)).sum()
    mlm = F.cross_entropy(student_logits, labels, ignore_index=IGNORED, reduction="sum")
    return kd_scale * temperature**2 * kd + mlm_scale * mlm, kd, mlm


def make_case(seed, rows, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.6] = IGNORED
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64)
    return features, weight, bias, labels, hidden, random_head(vocabulary, generator)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 12),
    vocabulary=st.integers(4, 20),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
    kind=st.sampled_from(["hidden", "top_k", "all", "none"]),
    chunk=st.sampled_from([1, 5, None]),
)
def test_value_and_gradients_equal_the_dense_float64_reference(seed, rows, vocabulary, temperature, kind, chunk):
    features, weight, bias, labels, hidden, head = make_case(seed, rows, vocabulary)
    teacher_logits = head.logits(hidden)
    k = vocabulary if kind == "all" else 3
    top, ids = teacher_logits.topk(k, -1)
    support = ids if kind in ("top_k", "all") else None
    targets = {
        "hidden": HiddenTargets(hidden, head),
        "none": None,
    }.get(kind, TopKTargets(ids, top / temperature - (teacher_logits / temperature).logsumexp(-1, keepdim=True)))
    kd_scale = 0.0 if kind == "none" else 0.7
    expected, kd, mlm = dense_reference(
        features @ weight.T + bias, teacher_logits, labels, temperature, kd_scale, 0.3, support
    )
    wanted = torch.autograd.grad(expected, (features, weight, bias))

    loss = distillation_loss(
        features,
        weight,
        bias,
        labels=labels,
        targets=targets,
        temperature=temperature,
        kd_scale=kd_scale,
        mlm_scale=0.3,
        chunk_rows=chunk,
    )
    found = torch.autograd.grad(loss.total, (features, weight, bias))

    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.mlm_sum, mlm)
    if kind != "none":
        torch.testing.assert_close(loss.kd_sum, kd)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_student_that_is_sure_outside_the_support_has_finite_gradients():
    features, weight, bias, labels, _, _ = make_case(0, 3, 8)
    ids = torch.tensor([[0, 1]] * 3)
    certain = (weight * 1e3).detach().requires_grad_()
    targets = TopKTargets(ids, torch.log(torch.tensor([[0.5, 0.3]] * 3, dtype=torch.float64)))
    loss = distillation_loss(
        features, certain, bias, labels=labels, targets=targets, temperature=1.0, kd_scale=1.0, mlm_scale=1.0
    )
    for gradient in torch.autograd.grad(loss.total, (features, certain, bias)):
        assert gradient.isfinite().all()


def test_quantised_probabilities_that_sum_above_one_leave_no_negative_rest():
    features, weight, bias, labels, _, _ = make_case(1, 3, 8)
    targets = TopKTargets(torch.tensor([[0, 1]] * 3), torch.log(torch.tensor([[0.7, 0.35]] * 3, dtype=torch.float64)))
    loss = distillation_loss(
        features, weight, bias, labels=labels, targets=targets, temperature=2.0, kd_scale=1.0, mlm_scale=0.0
    )
    assert loss.total.isfinite()
    assert torch.autograd.grad(loss.total, features)[0].isfinite().all()


def test_cosine_is_zero_for_parallel_and_two_for_opposite_vectors():
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(cosine_loss_sum(x, 3 * x), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(cosine_loss_sum(x, -x), torch.tensor(8.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_under_autocast_the_loss_is_near_the_float32_one(dtype):
    features, weight, bias, labels, hidden, head = make_case(2, 12, 16)
    features, weight, bias = (x.detach().float().requires_grad_() for x in (features, weight, bias))
    head = Head(head.steps, {name: tensor.float() for name, tensor in head.tensors.items()})
    arguments = {
        "labels": labels,
        "targets": HiddenTargets(hidden.float(), head),
        "temperature": 2.0,
        "kd_scale": 0.5,
        "mlm_scale": 0.5,
    }
    exact = distillation_loss(features, weight, bias, **arguments)
    with torch.autocast("cpu", dtype):
        rounded = distillation_loss(features, weight, bias, **arguments)
    assert rounded.total.dtype == torch.float32
    torch.testing.assert_close(rounded.total, exact.total, rtol=0.05, atol=0.05)
