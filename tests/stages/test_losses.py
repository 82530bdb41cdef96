"""The chunked loss against a dense float64 reference, value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import losses
from stages.divergences import DenseTargets
from stages.draws import draw_ids
from stages.heads import Head
from stages.losses import (
    DrawnTargets,
    HiddenTargets,
    TopKTargets,
    cosine_loss_sum,
    distillation_loss,
)

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
    mlm = F.cross_entropy(student_logits[: len(labels)], labels, reduction="sum")
    return kd_scale * temperature**2 * kd + mlm_scale * mlm, kd, mlm


def make_case(seed, rows, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64, requires_grad=True)
    labelled = int(torch.randint(rows + 1, (), generator=generator))
    labels = torch.randint(vocabulary, (labelled,), generator=generator)
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


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), weighted=st.booleans(), chunk=st.sampled_from([1, 4, None]))
def test_the_squared_difference_of_logits_adds_to_the_other_terms(seed, rows, weighted, chunk):
    features, weight, bias, labels, hidden, head = case = make_case(seed, rows, 11)
    generator = torch.Generator().manual_seed(seed)
    row_weights = 1 + torch.rand(rows, generator=generator, dtype=torch.float64) if weighted else None
    others, without = loss_and_gradients(case, HiddenTargets(hidden, head), 2.0, row_weights=row_weights, mlm_scale=0.3)
    squares = (features @ weight.T + bias - head.logits(hidden)).square().sum(-1)
    squares = (squares if row_weights is None else squares * row_weights).sum()
    alone = torch.autograd.grad(0.4 * squares, (features, weight, bias))
    loss = distillation_loss(
        features, weight, bias, labels=labels, targets=HiddenTargets(hidden, head), temperature=2.0, kd_scale=0.7,
        mlm_scale=0.3, mse_scale=0.4, row_weights=row_weights, chunk_rows=chunk,
    )  # fmt: skip
    torch.testing.assert_close(loss.mse_sum, squares)
    torch.testing.assert_close(loss.total, others.total + 0.4 * squares)
    found = torch.autograd.grad(loss.total, (features, weight, bias))
    for one, first, second in zip(found, without, alone, strict=True):
        torch.testing.assert_close(one, first + second)


def test_a_squared_difference_with_targets_that_are_not_dense_is_refused():
    features, weight, bias, labels, *_ = make_case(0, 3, 8)
    targets = TopKTargets(torch.tensor([[0, 1]] * 3), torch.log(torch.tensor([[0.5, 0.3]] * 3, dtype=torch.float64)))
    with pytest.raises(ValueError, match="needs all logits of the teacher"):
        distillation_loss(
            features, weight, bias, labels=labels, targets=targets, temperature=1.0, kd_scale=1.0, mlm_scale=1.0,
            mse_scale=0.1,
        )  # fmt: skip


def test_without_gradients_the_value_is_the_same_and_no_gradient_is_made():
    features, weight, bias, labels, hidden, head = case = make_case(4, 7, 9)
    expected, _ = loss_and_gradients(case, HiddenTargets(hidden, head), 2.0, mlm_scale=0.3)
    with torch.no_grad():
        loss = distillation_loss(
            features, weight, bias, labels=labels, targets=HiddenTargets(hidden, head), temperature=2.0, kd_scale=0.7,
            mlm_scale=0.3,
        )  # fmt: skip
    torch.testing.assert_close(loss.total, expected.total)
    assert not loss.total.requires_grad


def test_what_is_frozen_gets_no_gradient_and_the_others_the_same():
    case = make_case(4, 7, 9)
    features, weight, bias, labels, hidden, head = case
    _, expected = loss_and_gradients(case, HiddenTargets(hidden, head), 2.0, mlm_scale=0.3)
    loss = distillation_loss(
        features, weight.detach(), None, labels=labels, targets=HiddenTargets(hidden, head), temperature=2.0,
        kd_scale=0.7, mlm_scale=0.3,
    )  # fmt: skip
    with_bias = distillation_loss(
        features, weight.detach(), bias.detach(), labels=labels, targets=HiddenTargets(hidden, head), temperature=2.0,
        kd_scale=0.7, mlm_scale=0.3,
    )  # fmt: skip
    torch.testing.assert_close(torch.autograd.grad(with_bias.total, features)[0], expected[0])
    assert torch.autograd.grad(loss.total, features)[0].isfinite().all()


@pytest.mark.parametrize("kind", ["hidden", "rest", "draws"])
def test_the_backward_pass_scales_with_what_comes_in_and_can_be_repeated(kind):
    features, weight, bias, labels, hidden, head = case = make_case(9, 6, 12)
    log_p = teacher_of(case, 2.0)
    values, ids = log_p.topk(3, -1)
    targets = {
        "hidden": HiddenTargets(hidden, head),
        "rest": TopKTargets(ids, values),
        "draws": DrawnTargets(ids, torch.full_like(values, 1 / 3), -(log_p.exp() * log_p).sum(-1)),
    }[kind]
    loss, once = loss_and_gradients(case, targets, 2.0, mlm_scale=0.3)
    again, _ = loss_and_gradients(case, targets, 2.0, mlm_scale=0.3)
    torch.testing.assert_close(loss.total, again.total)
    total = distillation_loss(
        features, weight, bias, labels=labels, targets=targets, temperature=2.0, kd_scale=0.7, mlm_scale=0.3
    ).total
    for factor in (3.0, 1.0, 0.5):
        found = torch.autograd.grad(total * factor, (features, weight, bias), retain_graph=True)
        for one, other in zip(found, once, strict=True):
            torch.testing.assert_close(one, factor * other)


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


def test_full_logits_as_targets_give_what_their_hidden_states_give_and_stay_as_they_are():
    case = make_case(5, 7, 9)
    logits = case[5].logits(case[4])
    kept = logits.clone()
    expected, wanted = loss_and_gradients(case, HiddenTargets(case[4], case[5]), 2.0, mlm_scale=0.3)
    found, gradients = loss_and_gradients(case, DenseTargets(logits), 2.0, mlm_scale=0.3)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(gradients, wanted)
    assert torch.equal(logits, kept)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 7), weighted=st.booleans(), zero=st.booleans())
def test_the_cosine_loss_and_its_gradient_are_those_of_torch(seed, rows, weighted, zero):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64) for _ in range(2))
    if zero:
        theirs[0] = 0
    ours.requires_grad_()
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) if weighted else None
    expected = 1 - F.cosine_similarity(ours, theirs, dim=-1)
    expected = (expected if weights is None else expected * weights).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_COSINE_ROWS", 3)
        found = cosine_loss_sum(ours, theirs, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(2 * found, ours), torch.autograd.grad(2 * expected, ours))


@pytest.mark.filterwarnings("ignore")  # torch has some of its own while it traces
def test_a_compiled_function_that_calls_the_loss_gives_the_same():
    features, weight, bias, labels, hidden, head = make_case(6, 9, 12)

    def training_loss(x):
        x = torch.tanh(x)
        loss = distillation_loss(
            x, weight, bias, labels=labels, targets=HiddenTargets(hidden, head), temperature=2.0, kd_scale=0.7,
            mlm_scale=0.3,
        )  # fmt: skip
        return loss.total + cosine_loss_sum(x, hidden)

    expected = training_loss(features)
    found = torch.compile(training_loss, backend="eager")(features)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, features), torch.autograd.grad(expected, features))


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


def teacher_of(case, temperature):
    """The teacher's full log-probabilities at T, (rows, V), of a case."""
    *_, hidden, head = case
    return torch.log_softmax(head.logits(hidden) / temperature, -1)


def loss_and_gradients(case, targets, temperature, *, row_weights=None, chunk=None, mlm_scale=0.0):
    features, weight, bias, labels, *_ = case
    loss = distillation_loss(
        features, weight, bias, labels=labels, targets=targets, temperature=temperature, kd_scale=0.7, mlm_scale=mlm_scale,
        row_weights=row_weights, chunk_rows=chunk,
    )  # fmt: skip
    return loss, torch.autograd.grad(loss.total, (features, weight, bias))


def reference(case, kl_of_rows, temperature, row_weights, mlm_scale):
    """`kl_of_rows` (log q (rows, V)) -> (rows,), weighted and summed, with the MLM term: loss, KD sum and gradients."""
    features, weight, bias, labels, *_ = case
    logits = features @ weight.T + bias
    kl = kl_of_rows(F.log_softmax(logits / temperature, -1))
    kd = (kl if row_weights is None else kl * row_weights).sum()
    mlm = F.cross_entropy(logits[: len(labels)], labels, reduction="sum")
    total = 0.7 * temperature**2 * kd + mlm_scale * mlm
    return total, kd, torch.autograd.grad(total, (features, weight, bias))


def ragged(log_p, k, generator):
    """Top-k targets of 1 to k ids per row, as the bridge makes them."""
    values, ids = log_p.topk(k, -1)
    count = torch.randint(1, k + 1, (len(log_p), 1), generator=generator)
    counts = torch.arange(k) < count
    return torch.where(counts, ids, ids[:, :1]), values.masked_fill(~counts, float("-inf"))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    vocabulary=st.integers(4, 20),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    kind=st.sampled_from(["hidden", "rest", "renormalise", "draws", "head and draws"]),
    weighted=st.booleans(),
    chunk=st.sampled_from([1, 4, None]),
)
def test_every_kind_of_target_and_tail_equals_its_dense_float64_reference(
    seed, rows, vocabulary, temperature, kind, weighted, chunk
):
    case = make_case(seed, rows, vocabulary)
    generator = torch.Generator().manual_seed(seed)
    log_p = teacher_of(case, temperature)
    p, entropy = log_p.exp(), -(log_p.exp() * log_p).sum(-1)
    ids, kept = ragged(log_p, min(4, vocabulary - 1), generator)
    inside = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, ids, value=True)
    rest = p.masked_fill(inside, 0.0).sum(-1, keepdim=True)
    uniform = torch.rand(rows, 6, generator=generator, dtype=torch.float64)
    if kind == "hidden":
        targets = HiddenTargets(case[4], case[5])

        def kl(log_q):
            return (p * (log_p - log_q)).sum(-1)

    elif kind == "rest":
        targets = TopKTargets(ids, kept)

        def kl(log_q):
            q_rest = log_q.exp().masked_fill(inside, 0.0).sum(-1, keepdim=True)
            on_support = (p * (log_p - log_q)).masked_fill(~inside, 0.0).sum(-1)
            return on_support + (rest * (rest.log() - q_rest.log())).squeeze(-1)

    elif kind == "renormalise":
        targets = TopKTargets(ids, kept, renormalise=True)

        def kl(log_q):
            theirs, ours = (F.log_softmax(x.masked_fill(~inside, -1e300), -1) for x in (log_p, log_q))
            return (theirs.exp() * (theirs - ours)).masked_fill(~inside, 0.0).sum(-1)

    else:
        if kind == "draws":
            drawn = draw_ids(log_p * temperature, uniform, temperature)
            shares = torch.full_like(uniform, 1 / 6)
            targets = DrawnTargets(drawn, shares, entropy)
        else:
            drawn = draw_ids(log_p * temperature, uniform, temperature, ids)
            shares = torch.cat([kept.exp(), rest.expand(-1, 6) / 6], -1)
            targets = DrawnTargets(torch.cat([ids, drawn], -1), shares, entropy)
        estimate = torch.zeros_like(p).scatter_add_(1, targets.ids, shares)

        def kl(log_q):
            return -(estimate * log_q).sum(-1) - entropy

    row_weights = 1 + 3 * torch.rand(rows, generator=generator, dtype=torch.float64) if weighted else None
    expected, kd, wanted = reference(case, kl, temperature, row_weights, 0.3)
    loss, found = loss_and_gradients(case, targets, temperature, row_weights=row_weights, chunk=chunk, mlm_scale=0.3)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.kd_sum, kd)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def of_row(case, row):
    """The case of one row alone."""
    features, weight, bias, labels, hidden, head = case
    return features[row : row + 1], weight, bias, labels[row : row + 1], hidden[row : row + 1], head


def test_a_row_of_which_every_id_is_cached_has_no_rest_beside_one_that_has():
    case = make_case(3, 2, 5)
    log_p = teacher_of(case, 1.0)
    values, ids = log_p.topk(5, -1)
    counts = torch.tensor([[5], [2]])
    inside = torch.arange(5) < counts
    targets = TopKTargets(torch.where(inside, ids, ids[:, :1]), values.masked_fill(~inside, float("-inf")))
    loss, gradients = loss_and_gradients(case, targets, 1.0)
    whole, _ = loss_and_gradients(of_row(case, 0), TopKTargets(ids[:1], values[:1]), 1.0)
    part, _ = loss_and_gradients(of_row(case, 1), TopKTargets(ids[1:, :2], values[1:, :2]), 1.0)
    torch.testing.assert_close(loss.kd_sum, whole.kd_sum + part.kd_sum)
    assert all(gradient.isfinite().all() for gradient in gradients)


def relative(found, wanted):
    """Relative L2 distance over all gradients."""
    found, wanted = (torch.cat([x.flatten() for x in some]) for some in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def test_the_gradient_of_draws_is_right_on_average_and_that_of_renormalised_logits_is_not():
    temperature, n, repeats = 2.0, 8, 400
    case = make_case(11, 6, 30)
    log_p = teacher_of(case, temperature)
    entropy = -(log_p.exp() * log_p).sum(-1)
    values, ids = log_p.topk(4, -1)
    outside = (1 - values.exp().sum(-1, keepdim=True)).expand(-1, n) / n
    dense, wanted = loss_and_gradients(case, HiddenTargets(case[4], case[5]), temperature)
    generator = torch.Generator().manual_seed(5)

    def drawn(excluded):
        return draw_ids(
            log_p * temperature, torch.rand(6, n, generator=generator, dtype=torch.float64), temperature, excluded
        )

    def from_all():
        return DrawnTargets(drawn(None), torch.full((6, n), 1 / n, dtype=torch.float64), entropy)

    def beside_the_head():
        return DrawnTargets(torch.cat([ids, drawn(ids)], -1), torch.cat([values.exp(), outside], -1), entropy)

    for kind in (from_all, beside_the_head):
        results = [loss_and_gradients(case, kind(), temperature) for _ in range(repeats)]
        single = sum(relative(gradients, wanted) for _, gradients in results) / repeats
        mean = [sum(gradient) / repeats for gradient in zip(*(gradients for _, gradients in results), strict=True)]
        # The error of the mean is that of one draw over the square root of their number, as for any unbiased estimate.
        assert relative(mean, wanted) < 2 * single / repeats**0.5
        values_of = torch.stack([loss.kd_sum for loss, _ in results])
        assert abs(float(values_of.mean() - dense.kd_sum)) < 4 * float(values_of.std()) / repeats**0.5
    _, biased = loss_and_gradients(case, TopKTargets(ids, values, renormalise=True), temperature)
    assert relative(biased, wanted) > 0.3


def test_row_weights_weigh_cosine_and_not_the_masked_language_model():
    case = make_case(7, 5, 9)
    weights = torch.tensor([0.0, 1.0, 4.0, 1.0, 0.5], dtype=torch.float64)
    ours, theirs = case[0], case[4]
    separate = torch.stack([cosine_loss_sum(ours[i : i + 1], theirs[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(cosine_loss_sum(ours, theirs, weights), (separate * weights).sum())
    plain, _ = loss_and_gradients(case, HiddenTargets(theirs, case[5]), 2.0, mlm_scale=1.0)
    weighted, _ = loss_and_gradients(case, HiddenTargets(theirs, case[5]), 2.0, mlm_scale=1.0, row_weights=weights)
    torch.testing.assert_close(plain.mlm_sum, weighted.mlm_sum)
