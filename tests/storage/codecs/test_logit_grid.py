import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import GAP_MAX, LogitGrid, blocks
from tests.storage.codecs.strategies import descending_rows, flat, ragged_rows

STEPS = st.sampled_from([0.125, 0.25, 0.1])


@settings(deadline=None)
@given(descending_rows(-15, 15), STEPS)
def test_logits_are_off_by_at_most_half_a_step_and_the_error_does_not_add_up(logits, step):
    codec = LogitGrid(step)
    arrays = {**codec.encode(logits), "stat": logits[:, :1]}
    assert np.all(arrays["top_gap"][:, 0] == 0)
    error = np.abs(codec.decode(arrays).astype(np.float64) - logits)
    unsaturated = arrays["top_gap"] < GAP_MAX
    assert np.all(error[unsaturated] <= step / 2 + 1e-5)


@settings(deadline=None)
@given(descending_rows(-1e4, 1e4) | descending_rows(-(2.0**127), 2.0**127), STEPS)
def test_only_saturated_entries_break_the_bound_and_only_upwards(logits, step):
    codec = LogitGrid(step)
    arrays = {**codec.encode(logits), "stat": logits[:, :1]}
    assert np.all(arrays["top_gap"] <= GAP_MAX)
    decoded, bound = codec.decode(arrays).astype(np.float64), codec.error_bound(logits)
    assert np.array_equal(np.isinf(bound), arrays["top_gap"] == GAP_MAX)
    assert np.all(np.abs(decoded - logits) <= bound)
    rounding = 2.0**-22 * (np.abs(logits[:, :1]).astype(np.float64) + np.abs(logits))
    assert np.all(decoded >= logits.astype(np.float64) - step - rounding)


@settings(deadline=None)
@given(descending_rows(-400, 400))
def test_gaps_equal_the_recursion_of_the_format_document(logits):
    gaps = LogitGrid(0.125).encode(logits)["top_gap"]
    for row, expected in zip(logits.astype(np.float64), gaps, strict=True):
        reached = 0
        for z, gap in zip(row, expected, strict=True):
            assert gap == min(round((row[0] - z) / 0.125) - reached, GAP_MAX)
            reached += int(gap)


@settings(deadline=None)
@given(ragged_rows(-400, 400) | ragged_rows(-(2.0**127), 2.0**127), STEPS)
def test_ragged_rows_are_coded_as_each_row_alone(rows, step):
    codec = LogitGrid(step)
    logits, count, stat = flat(rows)
    gaps = codec.encode(logits, count)["top_gap"]
    alone = [codec.encode(row[None])["top_gap"][0] for row in rows]
    assert gaps.dtype == np.uint8
    assert gaps.tolist() == [gap for row in alone for gap in row.tolist()]
    decoded = codec.decode({"top_gap": gaps, "stat": stat, "top_count": count})
    expected = [
        codec.decode({"top_gap": gap[None], "stat": row[None, :1]})[0] for row, gap in zip(rows, alone, strict=True)
    ]
    assert decoded.tolist() == [z for row in expected for z in row.tolist()]
    bounds = [codec.error_bound(row[None])[0] for row in rows]
    assert codec.error_bound(logits, count).tolist() == [bound for row in bounds for bound in row.tolist()]


def test_rows_with_as_many_entries_as_a_byte_counts_are_coded_in_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_BLOCK_VALUES", 300)
    generator = np.random.default_rng(0)
    rows = [-np.sort(-generator.uniform(-4000, 4000, size).astype(np.float32)) for size in (255, 1, 255, 40, 1, 1, 255)]
    logits, count, stat = flat(rows)
    codec = LogitGrid(0.125)
    arrays = {**codec.encode(logits, count), "stat": stat, "top_count": count}
    assert arrays["top_gap"].tolist() == [gap for row in rows for gap in codec.encode(row[None])["top_gap"][0].tolist()]
    out = np.empty_like(logits)
    assert codec.decode(arrays, out) is out
    assert np.all(np.abs(out.astype(np.float64) - logits) <= codec.error_bound(logits, count))


def test_logits_may_be_as_far_apart_as_float32_allows():
    logits = np.array([[3e38, 0, -3e38]], np.float32)
    expected = [0, GAP_MAX, GAP_MAX]
    assert LogitGrid(0.125).encode(logits)["top_gap"].tolist() == [expected]
    count = np.array([1, 2], np.uint8)
    assert LogitGrid(0.125).encode(logits[0], count)["top_gap"].tolist() == [0, 0, GAP_MAX]


@pytest.mark.parametrize("distance", [254 * 0.125, 254.5 * 0.125, 1e6])
def test_a_gap_of_254_steps_or_more_is_saturated_and_the_next_entry_is_taken_from_there(distance):
    logits = np.array([[10, 10 - distance, 10 - distance - 0.125]], np.float32)
    reached = round(distance / 0.125 + 1) - GAP_MAX
    assert LogitGrid(0.125).encode(logits)["top_gap"].tolist() == [[0, GAP_MAX, min(reached, GAP_MAX)]]
