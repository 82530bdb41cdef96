import dataclasses

import numpy as np
import pytest

from storage.arrays import array_table, id_dtype
from tests.storage.build import ATTENTION, ATTENTION_ONLY, BALANCED, DRAWS, LAYOUTS, TAIL, THRESHOLD, make_description


def table_of(layout, vocabulary_size=50):
    description = dataclasses.replace(make_description(layout), vocabulary_size=vocabulary_size)
    return {spec.name: spec for spec in array_table(description, layout)}


@pytest.mark.parametrize(
    ("vocabulary_size", "dtype"), [(50, "<u2"), (65_535, "<u2"), (65_536, "<u4"), (200_000, "<u4")]
)
def test_ids_have_two_bytes_as_long_as_the_largest_value_is_left_over(vocabulary_size, dtype):
    assert id_dtype(vocabulary_size) == np.dtype(dtype)
    table = table_of(DRAWS, vocabulary_size)
    for name in ("original_ids", "input_ids", "top_ids", "draw_ids"):
        spec = table[name]
        assert spec.dtype == np.dtype(dtype)
        assert spec.limits == (0, vocabulary_size - 1)
        assert spec.fill_value == np.iinfo(spec.dtype).max > vocabulary_size - 1
        assert spec.holds_only_data(np.array([vocabulary_size - 1], spec.dtype))
        assert not spec.holds_only_data(np.array([0, spec.fill_value], spec.dtype))


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_array_takes_its_fill_value_for_data(name):
    for spec in table_of(LAYOUTS[name]).values():
        filled = np.full((3, *spec.row_shape), spec.fill_value, spec.dtype)
        assert not spec.holds_only_data(filled), spec.name
        assert spec.holds_only_data(filled[:0]), spec.name


@pytest.mark.parametrize(
    ("layout", "name", "good", "bad"),
    [
        (BALANCED, "masked", [0, 1], [2]),
        (BALANCED, "hidden", [-127, 127], [-128]),
        (BALANCED, "top_gap", [0, 254], [255]),
        (BALANCED, "hidden_scale", [0, 65504], [np.inf]),
        (BALANCED, "stat", [-3.4e38, 1e-45], [-np.inf]),
        (ATTENTION, "keys", [-127, 127], [-128]),
        (ATTENTION, "keys_scale", [0, 65504], [np.inf]),
        (ATTENTION_ONLY, "queries", [0, 0x7F7F], [0x7F80]),
        (TAIL, "top_count", [1, 6], [7]),
        (TAIL, "draw_count", [1, 9], [0]),
        (TAIL, "draw_weight", [1, 9], [10]),
        (THRESHOLD, "hidden", [0, 0x8000, 0x7F7F, 0xFF7F], [0x7F80]),
        (THRESHOLD, "hidden", [0x0001], [0xFF80]),
        (THRESHOLD, "hidden", [0x3F80], [0x7FC0]),
    ],
)
def test_values_out_of_range_are_no_data(layout, name, good, bad):
    spec = table_of(layout)[name]
    assert spec.holds_only_data(np.array(good, spec.dtype))
    assert not spec.holds_only_data(np.array(good + bad, spec.dtype))


def test_vectors_of_attention_have_a_width_of_their_own_and_are_a_target_each():
    table = {name: spec for name, spec in table_of(ATTENTION).items() if spec.target in ("queries", "keys", "values")}
    assert {name: (spec.row_shape, spec.target) for name, spec in table.items()} == {
        "queries": ((2, 24), "queries"),
        "queries_scale": ((2, 2), "queries"),
        "keys": ((2, 12), "keys"),
        "keys_scale": ((2, 1), "keys"),
        "values": ((2, 12), "values"),
        "values_scale": ((2, 1), "values"),
    }


def test_shapes_follow_from_the_counts():
    counts = {"sequences": 3, "tokens": 20, "rows": 7, "masked": 5, "entries": 11, "draws": 30}
    shapes = {name: spec.shape(counts) for name, spec in table_of(TAIL).items()}
    assert shapes == {
        "sequence_offsets": (4,),
        "original_ids": (20,),
        "input_ids": (20,),
        "masked": (20,),
        "row_token": (7,),
        "stat": (7, 5),
        "top_count": (7,),
        "top_ids": (11,),
        "top_logits": (11,),
        "draw_count": (7,),
        "draw_ids": (30,),
        "draw_weight": (30,),
        "hidden": (7, 2, 24),
        "hidden_scale": (7, 2, 1),
    }
