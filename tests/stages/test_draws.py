import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.draws import ShardUniforms, count_draws, draw_ids

ENDS = torch.tensor([0.0, 2.0**-54, 0.5, 1.0 - 2.0**-53, 1.0], dtype=torch.float64)


def uniform(rows, draws, seed=0):
    return torch.rand(rows, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ids_are_drawn_as_often_as_the_distribution_at_the_temperature_says():
    logits = 3 * torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    p = torch.softmax(logits.double() / 2, -1)
    draws = 200_000
    found = draw_ids(logits, uniform(3, draws), 2.0)
    for row in range(3):
        share = torch.bincount(found[row], minlength=40) / draws
        tolerance = 5 * (p[row] * (1 - p[row]) / draws).sqrt() + 1e-9
        assert ((share - p[row]).abs() <= tolerance).all()


def test_ids_of_the_tail_keep_their_proportions_and_the_others_never_come():
    logits = 3 * torch.randn(2, 40, generator=torch.Generator().manual_seed(2))
    excluded = logits.topk(5, -1).indices
    p = torch.softmax(logits.double() / 2, -1).scatter(1, excluded, 0.0)
    p /= p.sum(-1, keepdim=True)
    draws = 100_000
    found = draw_ids(logits, uniform(2, draws), 2.0, excluded)
    for row in range(2):
        share = torch.bincount(found[row], minlength=40) / draws
        assert (share[excluded[row]] == 0).all()
        assert ((share - p[row]).abs() <= 5 * (p[row] * (1 - p[row]) / draws).sqrt() + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 300),
    possible=st.floats(0.01, 1.0),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    half=st.booleans(),
)
def test_no_id_of_probability_zero_is_ever_drawn_not_even_at_the_ends(seed, vocabulary, possible, temperature, half):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(4, vocabulary, generator=generator)
    logits[torch.rand(4, vocabulary, generator=generator) > possible] = float("-inf") if half else -1e4
    logits[:, int(torch.randint(vocabulary, (1,), generator=generator))] = 0.0
    u = torch.cat([ENDS.expand(4, -1), uniform(4, 50, seed)], -1)
    found = draw_ids(logits, u, temperature)
    assert found.min() >= 0
    assert found.max() < vocabulary
    assert (logits.gather(1, found) > -1e4).all()


def test_the_first_and_last_possible_ids_are_drawn_at_the_ends():
    logits = torch.full((1, 9), float("-inf"))
    logits[0, [2, 4, 7]] = 0.0
    assert draw_ids(logits, ENDS[None], 1.0).tolist() == [[2, 2, 4, 7, 7]]


def test_a_tail_far_below_the_best_id_is_drawn_from_all_the_same():
    logits = torch.tensor([[500.0, 0.0, 0.0, -900.0]])
    found = draw_ids(logits, uniform(1, 100), 1.0, torch.tensor([[0, 0]]))
    assert set(found.unique().tolist()) == {1, 2}


def test_draws_are_stored_as_different_ids_ascending_with_their_counts():
    count, ids, weight = count_draws(np.array([[2, 7, 7, 7], [1, 1, 1, 1], [0, 1, 2, 3]], np.uint32))
    assert count.tolist() == [2, 1, 4]
    assert ids.tolist() == [2, 7, 1, 0, 1, 2, 3]
    assert weight.tolist() == [1, 3, 4, 1, 1, 1, 1]
    assert (count.dtype, weight.dtype) == (np.uint8, np.uint8)


def test_no_rows_have_no_draws():
    count, ids, weight = count_draws(np.empty((0, 5), np.uint32))
    assert (len(count), len(ids), len(weight)) == (0, 0, 0)


def test_as_many_draws_as_a_byte_counts_fit_when_all_are_one_id():
    assert count_draws(np.zeros((1, 255), np.uint32))[2].tolist() == [255]


def test_uniforms_depend_on_what_they_are_for_alone():
    one = ShardUniforms(0, "train", 0)
    np.testing.assert_array_equal(one.draws(5, 8, 4), ShardUniforms(0, "train", 0).draws(5, 8, 4))
    others = [
        ShardUniforms(1, "train", 0).draws(5, 8, 4),
        ShardUniforms(0, "test", 0).draws(5, 8, 4),
        ShardUniforms(0, "train", 1).draws(5, 8, 4),
        one.draws(6, 8, 4),
        one.positions(5, 32).reshape(8, 4),
    ]
    for other in others:
        assert not np.isin(other, one.draws(5, 8, 4)).any()


def test_the_uniforms_are_the_ones_that_caches_were_made_with():
    """Other numbers here would be another cache under the same fingerprint: raise the version of `targets` then."""
    uniforms = ShardUniforms(0, "train", 0)
    assert uniforms.positions(0, 2).tolist() == [0.9460689893068608, 0.3332826601909768]
    assert uniforms.draws(3, 2, 1).tolist() == [[0.45392358690923024], [0.9016041355765085]]
