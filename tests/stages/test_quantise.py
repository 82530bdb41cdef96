import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.quantise import CODED, as_stored, encode_logits, encode_vectors
from storage import Layout, codecs

FLOATS = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, -0.0, 2.0**-24, 127 * 65504.0, 1e-30])
HIDDEN = [("int8", 64), ("int8", 3), ("int8", 10), ("int8", 100), ("float16", 64), ("bfloat16", 64), ("float32", 64)]


def stored(layout, tensors):
    return {name: as_stored(layout, name, tensor.numpy()) for name, tensor in tensors.items()}


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@settings(max_examples=80, deadline=None)
@given(
    states=arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 2), st.just(10)), elements=FLOATS),
    coding=st.sampled_from(HIDDEN),
)
def test_hidden_states_are_coded_bit_for_bit_as_storage_does_it(states, coding):
    layout = Layout(
        positions="all", hidden=coding[0], hidden_group=coding[1], hidden_layers=(1,), logits="none", top_k=0
    )
    if coding[0] == "float16":
        states = states.clip(-codecs.FLOAT16_MAX, codecs.FLOAT16_MAX)
    found = stored(layout, encode_vectors(layout, "hidden", torch.from_numpy(states)))
    assert_same_bits(found, codecs.encode_hidden(layout, states))


@settings(max_examples=40, deadline=None)
@given(
    vectors=arrays.arrays(np.float32, st.tuples(st.integers(0, 5), st.integers(1, 2), st.just(10)), elements=FLOATS),
    coding=st.sampled_from(HIDDEN),
)
def test_vectors_of_attention_are_coded_bit_for_bit_as_storage_does_it(vectors, coding):
    layout = Layout(
        positions="all", hidden="float32", hidden_layers=(1,), hidden_group=coding[1], logits="none", top_k=0,
        attention_vectors=("keys",), attention_widths=(10,), attention_layers=(1,), attention_coding=coding[0],
    )  # fmt: skip
    if coding[0] == "float16":
        vectors = vectors.clip(-codecs.FLOAT16_MAX, codecs.FLOAT16_MAX)
    found = stored(layout, encode_vectors(layout, "keys", torch.from_numpy(vectors)))
    assert_same_bits(found, codecs.encode_vectors(layout, "keys", vectors))
    assert found.keys() <= CODED


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_of_a_half_precision_teacher_are_coded_as_their_float32_values(dtype):
    states = torch.randn(7, 1, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    for coding in ("int8", "bfloat16", "float16", "float32"):
        layout = Layout(positions="all", hidden=coding, hidden_layers=(1,), logits="none", top_k=0)
        found = stored(layout, encode_vectors(layout, "hidden", states))
        assert_same_bits(found, codecs.encode_hidden(layout, states.float().numpy()))


@settings(max_examples=80, deadline=None)
@given(
    logits=arrays.arrays(
        np.float32, st.tuples(st.integers(0, 5), st.integers(1, 9)), elements=st.floats(-1e5, 1e5, width=32)
    ),
    step=st.sampled_from([0.125, 0.1, 1.0]),
)
def test_descending_logits_are_coded_bit_for_bit_as_storage_does_it(logits, step):
    logits = -np.sort(-logits, axis=-1)
    layout = Layout(
        positions="all", hidden="none", hidden_layers=(), logits="grid", grid_step=step, top_k=logits.shape[1]
    )
    found = stored(layout, encode_logits(layout, torch.from_numpy(logits)))
    assert_same_bits(found, codecs.encode_logits(layout, logits))


def test_logits_that_are_kept_as_floats_or_cut_to_different_lengths_are_left_to_storage():
    logits = torch.zeros(2, 4)
    floats = Layout(positions="all", hidden="none", hidden_layers=(), logits="float16", top_k=4)
    cut = Layout(
        positions="all", hidden="none", hidden_layers=(), logits="grid", top_k=4, selection="threshold", threshold=0.01
    )
    assert encode_logits(floats, logits) == encode_logits(cut, logits) == {}


@pytest.mark.parametrize("coding", ["int8", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_so_after_coding_either(coding, value):
    states = torch.ones(3, 1, 128)
    states[1, 0, 70] = value
    layout = Layout(positions="all", hidden=coding, hidden_layers=(1,), logits="none", top_k=0)
    with np.errstate(invalid="ignore"):
        found = codecs.decode_vectors(layout, "hidden", stored(layout, encode_vectors(layout, "hidden", states)))
    assert np.isfinite(found).all((1, 2)).tolist() == [True, False, True]
