import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.target_selection import Scratch, count_likely, statistics, top_k


def normal(rows, vocabulary, seed=0, scale=4.0):
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0), (0.7, 1.0, 2.0, 4.0), (1.0, 1.5, 3.0)])
@pytest.mark.parametrize("reused", [False, True])
def test_statistics_are_those_of_the_full_softmax_in_double_precision(temperatures, reused):
    logits = torch.cat([normal(5, 900), normal(2, 900, scale=40.0), torch.zeros(1, 900)])
    scratch = Scratch.of(20, 900, torch.device("cpu")).of_rows(8) if reused else None
    found = statistics(logits, temperatures, scratch)
    assert torch.equal(found[:, 0], logits.amax(-1))
    for i, temperature in enumerate(temperatures):
        scaled = logits.double() / temperature
        log_p = scaled.log_softmax(-1)
        torch.testing.assert_close(found[:, 1 + 2 * i].double(), scaled.logsumexp(-1), rtol=1e-6, atol=1e-6)
        entropy = -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(found[:, 2 + 2 * i].double(), entropy, rtol=2e-6, atol=2e-6)


def test_equal_logits_come_by_their_ids():
    values, ids = top_k(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4)
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert ids.tolist() == [[1, 2, 4, 3]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 700),
    k=st.integers(1, 12),
    coarse=st.booleans(),
)
def test_the_best_are_found_wherever_in_the_vocabulary_they_stand(seed, vocabulary, k, coarse):
    logits = normal(4, vocabulary, seed)
    if coarse:  # many equal ones
        logits = logits.round()
    k = min(k, vocabulary)
    values, ids = top_k(logits, k)
    assert torch.equal(values, logits.sort(-1, descending=True)[0][:, :k])
    assert torch.equal(values, logits.gather(-1, ids))
    for row_values, row_ids in zip(values.tolist(), ids.tolist(), strict=True):
        assert len(set(row_ids)) == k
        ranked = list(zip(-np.array(row_values), row_ids, strict=True))
        assert ranked == sorted(ranked)


def test_a_vocabulary_that_no_block_divides_is_seen_to_its_end():
    logits = torch.zeros(1, 64 * 30 + 7)
    logits[0, -1], logits[0, -2], logits[0, 0] = 3.0, 2.0, 1.0
    assert top_k(logits, 3)[1].tolist() == [[64 * 30 + 6, 64 * 30 + 5, 0]]


def test_a_threshold_keeps_the_ids_of_at_least_that_probability():
    logits = 4 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.0):
        p = torch.softmax(logits / temperature, -1)
        values, _ = top_k(logits, 20)
        found = count_likely(values, (logits / temperature).logsumexp(-1), temperature, 0.05)
        assert found.tolist() == (p >= 0.05).sum(-1).clamp_min(1).tolist()


def test_the_best_id_is_kept_whatever_its_probability_and_never_more_than_the_cap():
    flat = torch.zeros(1, 100)
    values, _ = top_k(flat, 8)
    assert count_likely(values, flat.logsumexp(-1), 1.0, 0.5).tolist() == [1]
    assert count_likely(values, flat.logsumexp(-1), 1.0, 0.001).tolist() == [8]
