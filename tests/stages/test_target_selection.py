import torch

from stages.target_selection import count_likely, top_k


def test_equal_logits_come_by_their_ids():
    values, ids = top_k(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4)
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert ids.tolist() == [[1, 2, 4, 3]]


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
