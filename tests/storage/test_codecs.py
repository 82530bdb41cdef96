import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage import decode_hidden, decode_logits, encode_hidden, encode_logits
from storage.codecs import GAP_MAX, FloatCodec, Int8Groups, LogitGrid, row_blocks
from tests.storage.build import BALANCED, LAYOUTS, LOGITS_ONLY, LOSSLESS

FINITE = st.floats(width=32, min_value=-6e6, max_value=6e6)
HALF_RANGE = st.floats(width=32, min_value=-65504, max_value=65504)
STATES = st.tuples(st.integers(0, 4), st.integers(1, 2), st.integers(1, 70))


def descending_rows(low: float, high: float):
    rows = hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.floats(width=32, min_value=low, max_value=high),
    )
    return rows.map(lambda array: -np.sort(-array, axis=1))


@settings(deadline=None)
@given(hnp.arrays(np.float32, STATES, elements=FINITE), st.sampled_from([1, 7, 16, 64]))
def test_int8_groups_are_off_by_at_most_half_a_scale(hidden, group):
    codec = Int8Groups(group)
    arrays = codec.encode(hidden)
    scale = np.repeat(arrays["hidden_scale"].astype(np.float64), group, axis=-1)[..., : hidden.shape[-1]]
    error = np.abs(codec.decode(arrays).astype(np.float64) - hidden)
    assert np.all(error <= (0.5 + 2**-18) * scale)
    assert arrays["hidden"].dtype == np.int8
    assert np.all(arrays["hidden"] >= -127)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.just(1), st.just(1), st.integers(1, 8)), elements=FINITE))
def test_the_scale_is_the_smallest_float16_not_below_the_absmax_over_127(hidden):
    scale = Int8Groups(8).encode(hidden)["hidden_scale"][0, 0, 0]
    absmax = float(np.abs(hidden).max())
    assert float(scale) * 127 >= absmax
    assert scale == 0 or float(np.nextafter(scale, np.float16(0))) * 127 < absmax


def test_int8_groups_equal_a_plain_loop_over_the_definition():
    hidden = np.random.default_rng(0).standard_normal((3, 2, 21)).astype(np.float32)
    arrays = Int8Groups(8).encode(hidden)
    for row, layer, start in np.ndindex(3, 2, 3):
        group = hidden[row, layer, 8 * start : 8 * start + 8]
        scale = np.float16(np.abs(group).max() / np.float32(127))
        if float(scale) * 127 < np.abs(group).max():
            scale = np.nextafter(scale, np.float16(np.inf))
        assert arrays["hidden_scale"][row, layer, start] == scale
        expected = np.rint(group / np.float32(scale))
        assert np.array_equal(arrays["hidden"][row, layer, 8 * start : 8 * start + 8], expected)


def test_a_group_of_zeros_has_scale_zero_and_comes_back_as_zeros():
    arrays = Int8Groups(4).encode(np.zeros((2, 1, 6), np.float32))
    assert not arrays["hidden_scale"].any()
    assert not Int8Groups(4).decode(arrays).any()


@settings(deadline=None)
@given(descending_rows(-15, 15), st.sampled_from([0.125, 0.25, 0.1]))
def test_the_grid_is_off_by_at_most_half_a_step_and_the_error_does_not_add_up(logits, step):
    codec = LogitGrid(step)
    arrays = {**codec.encode(logits), "stat": logits[:, :1]}
    assert np.all(arrays["top_gap"] <= GAP_MAX)
    assert np.all(arrays["top_gap"][:, 0] == 0)
    error = np.abs(codec.decode(arrays).astype(np.float64) - logits)
    unsaturated = arrays["top_gap"] < GAP_MAX
    assert np.all(error[unsaturated] <= step / 2 + 1e-5)


@settings(deadline=None)
@given(descending_rows(-1e4, 1e4))
def test_only_saturated_entries_of_the_grid_break_the_bound(logits):
    codec = LogitGrid(0.125)
    arrays = {**codec.encode(logits), "stat": logits[:, :1]}
    decoded = codec.decode(arrays).astype(np.float64)
    unsaturated = arrays["top_gap"] < GAP_MAX
    assert np.all(np.abs(decoded - logits)[unsaturated] <= 0.0625 + 2e-3)
    assert np.all(decoded >= logits - 0.0625 - 2e-3)


@settings(deadline=None)
@given(descending_rows(-400, 400))
def test_the_grid_equals_the_recursion_of_the_format_document(logits):
    gaps = LogitGrid(0.125).encode(logits)["top_gap"]
    for row, expected in zip(logits.astype(np.float64), gaps, strict=True):
        reached = 0
        for z, gap in zip(row, expected, strict=True):
            assert gap == min(round((row[0] - z) / 0.125) - reached, GAP_MAX)
            reached += int(gap)


def test_the_grid_takes_logits_as_far_apart_as_float32_allows():
    logits = np.array([[3e38, 0, -3e38]], np.float32)
    assert LogitGrid(0.125).encode(logits)["top_gap"].tolist() == [[0, GAP_MAX, GAP_MAX]]


@settings(deadline=None)
@given(hnp.arrays(np.float32, STATES, elements=HALF_RANGE))
def test_float16_keeps_eleven_bits(hidden):
    codec = FloatCodec("hidden", "float16")
    error = np.abs(codec.decode(codec.encode(hidden)) - hidden)
    assert np.all(error <= np.maximum(np.abs(hidden) / 2048, 2.0**-25))


def test_float32_is_lossless():
    hidden = np.random.default_rng(0).standard_normal((4, 1, 5)).astype(np.float32)
    assert np.array_equal(decode_hidden(LOSSLESS, encode_hidden(LOSSLESS, hidden)), hidden)


@pytest.mark.parametrize("name", ["lossless", "exact", "balanced", "masked"])
def test_decoding_into_given_memory_equals_decoding_into_new(name):
    layout = LAYOUTS[name]
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((9, 2, 24)).astype(np.float32)
    arrays = encode_hidden(layout, hidden)
    out = np.empty_like(hidden)
    assert decode_hidden(layout, arrays, out) is out
    assert np.array_equal(out, decode_hidden(layout, arrays))
    logits = -np.sort(-generator.standard_normal((9, 5)), axis=1).astype(np.float32)
    arrays = {**encode_logits(layout, logits), "stat": logits[:, :1]}
    out = np.empty_like(logits)
    assert decode_logits(layout, arrays, out) is out
    assert np.array_equal(out, decode_logits(layout, arrays))


def test_many_rows_are_coded_as_few_rows_are():
    hidden = np.random.default_rng(0).standard_normal((300, 1, 2048)).astype(np.float32)
    whole = encode_hidden(BALANCED, hidden)
    assert len(list(row_blocks(300, 2048))) > 1
    for row in (0, 127, 128, 299):
        alone = encode_hidden(BALANCED, hidden[row : row + 1])
        assert all(np.array_equal(whole[name][row], alone[name][0]) for name in whole)
    assert np.array_equal(decode_hidden(BALANCED, whole)[299:], decode_hidden(BALANCED, alone))


def test_what_a_layout_does_not_cache_cannot_be_coded():
    with pytest.raises(ValueError, match="caches no hidden states"):
        encode_hidden(LOGITS_ONLY, np.zeros((1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="caches no logits"):
        decode_logits(LAYOUTS["hidden_only"], {})
