import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.codecs import INT8_MAX, Int8Groups
from tests.storage.codecs.strategies import hidden_states

LIMIT = Int8Groups(1).limit
GROUPS = st.sampled_from([1, 7, 16, 64, 70, 1_000_000])


@settings(deadline=None)
@given(hidden_states(LIMIT) | hidden_states(8.0), GROUPS)
def test_values_are_off_by_at_most_half_a_scale(hidden, group):
    codec = Int8Groups(group)
    arrays = codec.encode(hidden)
    groups = -(-hidden.shape[-1] // group)
    assert arrays["hidden_scale"].shape == (*hidden.shape[:2], groups)
    assert np.isfinite(arrays["hidden_scale"]).all()
    of_value = np.arange(hidden.shape[-1]) // group
    bound = (0.5 + 2**-18) * arrays["hidden_scale"].astype(np.float64)[..., of_value]
    assert np.array_equal(codec.error_bound(hidden), bound)
    assert np.all(np.abs(codec.decode(arrays).astype(np.float64) - hidden) <= bound)
    assert arrays["hidden"].dtype == np.int8
    assert np.all(arrays["hidden"] >= -INT8_MAX)


@settings(deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(1), st.just(1), st.integers(1, 8)),
        elements=st.floats(width=32, min_value=-6e6, max_value=6e6),
    )
)
def test_the_scale_is_the_smallest_float16_not_below_the_absmax_over_127(hidden):
    scale = Int8Groups(8).encode(hidden)["hidden_scale"][0, 0, 0]
    absmax = float(np.abs(hidden).max())
    assert float(scale) * 127 >= absmax
    assert scale == 0 or float(np.nextafter(scale, np.float16(0))) * 127 < absmax


def test_codes_equal_a_plain_loop_over_the_definition():
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


def test_a_group_as_wide_as_the_row_is_one_scale_per_row_and_a_wider_one_is_the_same():
    hidden = np.random.default_rng(0).standard_normal((3, 2, 21)).astype(np.float32)
    arrays, wider = Int8Groups(21).encode(hidden), Int8Groups(64).encode(hidden)
    assert arrays["hidden_scale"].shape == (3, 2, 1)
    for name, array in arrays.items():
        assert np.array_equal(array, wider[name])
    assert np.array_equal(Int8Groups(64).decode(wider), Int8Groups(21).decode(arrays))


def test_a_group_of_zeros_has_scale_zero_and_comes_back_as_zeros():
    zeros = np.zeros((2, 1, 6), np.float32)
    zeros[1] = -0.0
    arrays = Int8Groups(4).encode(zeros)
    assert not arrays["hidden_scale"].any()
    assert not Int8Groups(4).decode(arrays).any()


def test_the_largest_magnitude_is_coded_without_error():
    hidden = np.array([[[LIMIT, -LIMIT, 0]]], np.float32)
    assert Int8Groups(2).decode(Int8Groups(2).encode(hidden)).tolist() == hidden.tolist()
