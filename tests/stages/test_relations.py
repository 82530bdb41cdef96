"""Relations and attention scores, a few heads of sequences at a time, against a dense float64 reference, value and gradient."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import relations
from stages.relations import attention_loss_sum, laid_out, relation_loss_sum

shapes = settings(max_examples=30, deadline=None)
CASES = {
    "seed": st.integers(0, 10_000),
    "lengths": st.lists(st.integers(1, 6), min_size=1, max_size=4),
    "heads": st.sampled_from([1, 2, 4]),
    "causal": st.booleans(),
    "at_a_time": st.sampled_from([1, 3, 100]),
}


def vectors(seed, lengths, width, count=1, dtype=torch.float64):
    """Random vectors, those at padding too; and where positions are real."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths), width)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return made, real.long()


def split(x, length, heads, head):
    """(n, d): what a head sees of a sequence without its padding."""
    return x[:length].chunk(heads, -1)[head]


def scores(x, y, causal):
    """(n, n), minus infinity where a position is not seen."""
    s = x @ y.T / x.shape[-1] ** 0.5
    return s.masked_fill(torch.ones_like(s).triu(1).bool(), -torch.inf) if causal else s


def relations_reference(ours, theirs, lengths, heads, causal):
    """Sequence by sequence, head by head, position by position."""
    total = torch.zeros((), dtype=torch.float64)
    for number, length in enumerate(lengths):
        for head in range(heads):
            x, y = split(ours[number], length, heads, head), split(theirs[number], length, heads, head)
            q, p = F.softmax(scores(x, x, causal), -1), F.softmax(scores(y, y, causal), -1)
            for t in range(length):
                seen = slice(None, t + 1) if causal else slice(None)
                total = total + (p[t, seen] * (p[t, seen].log() - q[t, seen].log())).sum() / heads
    return total


def attention_reference(ours, theirs, lengths, heads, causal):
    total = torch.zeros((), dtype=torch.float64)
    for number, length in enumerate(lengths):
        for head in range(heads):
            s, their_s = (
                scores(*(split(x[number], length, heads, head) for x in side), causal) for side in (ours, theirs)
            )
            for t in range(length):
                seen = slice(None, t + 1) if causal else slice(None)
                total = total + (s[t, seen] - their_s[t, seen]).square().mean() / heads
    return total


@contextmanager
def few_at_a_time(count, lengths):
    """Have the scores of so many heads of sequences at the same time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "_CPU_BYTES", count * 4 * max(lengths) ** 2)
        yield


@shapes
@given(**CASES)
def test_relations_equal_the_float64_reference_in_value_and_gradient(seed, lengths, heads, causal, at_a_time):
    (ours,), real = vectors(seed, lengths, 8)
    (theirs,), _ = vectors(seed + 1, lengths, 12)
    ours.requires_grad_()
    expected = relations_reference(ours, theirs, lengths, heads, causal)
    (wanted,) = torch.autograd.grad(expected, ours)
    with few_at_a_time(at_a_time, lengths):
        found = relation_loss_sum(ours, theirs, real, heads=heads, causal=causal)
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(torch.autograd.grad(found, ours)[0], wanted)


@shapes
@given(**CASES)
def test_attention_scores_equal_the_float64_reference_in_value_and_gradient(seed, lengths, heads, causal, at_a_time):
    ours, real = vectors(seed, lengths, 8, count=2)
    theirs, _ = vectors(seed + 1, lengths, 12, count=2)
    for x in ours:
        x.requires_grad_()
    expected = attention_reference(ours, theirs, lengths, heads, causal)
    wanted = torch.autograd.grad(expected, ours)
    with few_at_a_time(at_a_time, lengths):
        found = attention_loss_sum(tuple(ours), tuple(theirs), real, heads=heads, causal=causal)
    torch.testing.assert_close(found, expected.detach())
    for one, other in zip(torch.autograd.grad(found, ours), wanted, strict=True):
        torch.testing.assert_close(one, other)


def both_losses(ours, theirs, real):
    relation = relation_loss_sum(ours[0], theirs[0], real, heads=2)
    return relation + attention_loss_sum(tuple(ours), tuple(theirs), real, heads=2)


def test_what_stands_at_padding_changes_nothing_and_gets_no_gradient():
    lengths = [3, 5, 1]
    ours, real = vectors(0, lengths, 8, count=2)
    theirs, _ = vectors(1, lengths, 8, count=2)
    padding = real[..., None] == 0
    others = [x.masked_fill(padding, 100.0).requires_grad_() for x in ours]
    loss = both_losses(others, [x.masked_fill(padding, -7.0) for x in theirs], real)
    torch.testing.assert_close(loss.detach(), both_losses(ours, theirs, real))
    for gradient in torch.autograd.grad(loss, others):
        assert not gradient.masked_select(padding).any()
        assert gradient.masked_select(~padding).any()


def test_the_sum_over_sequences_is_that_of_the_sequences_alone():
    lengths = [4, 2, 6]
    ours, real = vectors(0, lengths, 8, count=2)
    theirs, _ = vectors(1, lengths, 8, count=2)
    alone = [
        both_losses([x[i : i + 1, :n] for x in ours], [x[i : i + 1, :n] for x in theirs], real[i : i + 1, :n])
        for i, n in enumerate(lengths)
    ]
    torch.testing.assert_close(both_losses(ours, theirs, real), torch.stack(alone).sum())


def test_a_student_that_relates_as_the_teacher_does_has_no_loss_whatever_its_width():
    (x,), real = vectors(0, [4, 3], 8)
    # Each head's part beside zeros: the same products, over the square root of another width.
    wider = torch.cat([F.pad(head, (0, 4)) for head in x.chunk(2, -1)], -1) * (8 / 4) ** 0.25
    loss = relation_loss_sum(wider, x, real, heads=2)
    torch.testing.assert_close(loss, torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_backward_pass_scales_with_what_comes_in_and_can_be_repeated():
    ours, real = vectors(0, [4, 3], 8, count=2)
    theirs, _ = vectors(1, [4, 3], 8, count=2)
    for x in ours:
        x.requires_grad_()
    once = torch.autograd.grad(both_losses(ours, theirs, real), ours)
    loss = both_losses(ours, theirs, real)
    for factor in (3.0, 0.5):
        for one, other in zip(torch.autograd.grad(loss * factor, ours, retain_graph=True), once, strict=True):
            torch.testing.assert_close(one, factor * other)


def test_without_gradients_the_value_is_the_same_and_none_is_made():
    ours, real = vectors(0, [4, 3], 8, count=2)
    theirs, _ = vectors(1, [4, 3], 8, count=2)
    expected = both_losses([x.requires_grad_() for x in ours], theirs, real)
    with torch.no_grad():
        found = both_losses(ours, theirs, real)
    torch.testing.assert_close(found, expected.detach())
    assert not found.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_compared_in_float32_under_autocast_too(dtype):
    ours, real = vectors(0, [6, 4], 8, count=2, dtype=torch.float32)
    theirs, _ = vectors(1, [6, 4], 8, count=2, dtype=torch.float32)
    ours = [x.to(dtype).requires_grad_() for x in ours]
    expected = both_losses([x.detach().double() for x in ours], [x.double() for x in theirs], real)
    with torch.autocast("cpu", dtype):
        found = both_losses(ours, theirs, real)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(gradient.dtype == dtype for gradient in torch.autograd.grad(found, ours))


def test_what_is_kept_for_the_backward_pass_is_as_large_as_the_vectors():
    ours, real = vectors(0, [32] * 4, 8, count=2)
    theirs, _ = vectors(1, [32] * 4, 8, count=2)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    for x in ours:
        x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        both_losses(ours, theirs, real)
    assert 0 < sum(kept) <= 3 * ours[0].numel()


def test_heads_that_do_not_divide_a_width_are_refused():
    (ours, theirs), real = vectors(0, [4], 8, count=2)
    with pytest.raises(ValueError, match="vectors of width 8; expected a multiple of 3 heads"):
        relation_loss_sum(ours, theirs, real, heads=3)


def test_rows_are_laid_out_at_their_places_with_zeros_at_padding():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = [[[5.0, 6.0], [1.0, 2.0]], [[3.0, 4.0], [0.0, 0.0]]]
    assert laid_out(rows, torch.tensor([1, 2, 0]), (2, 2)).tolist() == expected
