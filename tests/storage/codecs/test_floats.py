import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.codecs import BFLOAT16_INFINITY, BFLOAT16_MAX, FLOAT16_MAX, Bfloat16, FloatCodec
from tests.storage.codecs.strategies import hidden_states


def coded(codec, values):
    return codec.decode(codec.encode(values))


def bits(value):
    return int(np.float32(value).view(np.uint32))


@settings(deadline=None)
@given(hidden_states(FLOAT16_MAX))
def test_float16_is_off_by_no_more_than_it_says(values):
    codec = FloatCodec("hidden", "float16")
    error = np.abs(coded(codec, values).astype(np.float64) - values)
    assert np.all(error <= codec.error_bound(values))


@settings(deadline=None)
@given(hidden_states(BFLOAT16_MAX))
def test_bfloat16_is_off_by_no_more_than_it_says(values):
    codec = Bfloat16()
    decoded = coded(codec, values)
    assert np.isfinite(decoded).all()
    assert np.all(np.abs(decoded.astype(np.float64) - values) <= codec.error_bound(values))
    assert np.array_equal(np.signbit(decoded), np.signbit(values))


@settings(deadline=None)
@given(st.floats(width=32, min_value=-BFLOAT16_MAX, max_value=BFLOAT16_MAX))
def test_bfloat16_is_the_nearest_and_among_two_the_even_one(value):
    stored = int(Bfloat16().encode(np.full((1, 1, 1), value, np.float32))["hidden"][0, 0, 0])
    lower = bits(value) >> 16  # of the two neighbours the one nearer to zero
    rest = bits(value) & 0xFFFF
    expected = lower + (rest > 0x8000 or (rest == 0x8000 and lower % 2 == 1))
    assert stored == expected


def test_what_is_a_bfloat16_comes_back_bit_by_bit():
    every = np.arange(1 << 16, dtype=np.uint32)
    finite = every[(every & 0x7FFF) < BFLOAT16_INFINITY].astype(np.uint16).reshape(-1, 1, 1)
    values = Bfloat16().decode({"hidden": finite})
    assert np.array_equal(Bfloat16().encode(values)["hidden"], finite)


def test_the_limit_of_bfloat16_is_the_last_float32_that_stays_finite():
    beyond = np.nextafter(np.float32(BFLOAT16_MAX), np.float32(np.inf))
    edge = np.array([BFLOAT16_MAX, -BFLOAT16_MAX, beyond], np.float32).reshape(1, 1, 3)
    assert Bfloat16().encode(edge)["hidden"].tolist() == [[[0x7F7F, 0xFF7F, BFLOAT16_INFINITY]]]


@settings(deadline=None)
@given(hidden_states(float(np.finfo(np.float32).max)))
def test_float32_is_lossless(values):
    codec = FloatCodec("hidden", "float32")
    assert np.array_equal(coded(codec, values).view(np.uint32), values.view(np.uint32))
    assert not codec.error_bound(values).any()


@pytest.mark.parametrize("codec", [FloatCodec("hidden", "float32"), FloatCodec("hidden", "float16"), Bfloat16()])
def test_decoding_into_given_memory_equals_decoding_into_new(codec):
    values = np.random.default_rng(0).standard_normal((9, 2, 24)).astype(np.float32)
    arrays = codec.encode(values)
    memory = np.full((9, 4, 24), np.nan, np.float32)
    out = memory[:, ::2]  # not contiguous
    assert codec.decode(arrays, out) is out
    assert np.array_equal(out, codec.decode(arrays))
    assert np.isnan(memory[:, 1::2]).all()
