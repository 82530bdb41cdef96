import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages.planning.sample import spread_spans


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(1, 7), st.integers(1, 300))
def test_spans_lie_in_order_within_the_split_and_do_not_overlap(lengths, pieces, piece_tokens):
    spans = spread_spans(np.array(lengths, np.uint32), pieces, piece_tokens)
    assert 1 <= len(spans) <= pieces
    end = 0
    for start, count in spans:
        assert count >= 1
        assert start >= end
        end = start + count
    assert end <= len(lengths)


def test_spans_are_spread_over_the_whole_split():
    spans = spread_spans(np.full(1000, 10, np.uint32), 5, 100)
    assert spans == [(0, 10), (200, 10), (400, 10), (600, 10), (800, 10)]


def test_a_split_that_is_no_longer_than_the_sample_is_taken_whole():
    spans = spread_spans(np.full(10, 10, np.uint32), 5, 100)
    assert sum(count for _, count in spans) == 10
