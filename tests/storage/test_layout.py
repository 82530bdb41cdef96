import dataclasses

import pytest

from storage import CorruptError, Layout, ShardId
from tests.storage.build import BALANCED, DRAWS, DRAWS_ONLY, LAYOUTS, TAIL, THRESHOLD


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_comes_back_equal_through_json(layout):
    assert Layout.from_json(layout.to_json()) == layout


def test_the_json_of_a_layout_that_the_first_writers_knew_is_what_they_wrote():
    """In their order, too: Zarr stores attributes as they come, and the bytes of a shard are to stay the same."""
    assert list(BALANCED.to_json().items()) == [
        ("positions", "all"),
        ("hidden", "int8"),
        ("hidden_layers", [2]),
        ("logits", "grid"),
        ("top_k", 8),
        ("hidden_group", 16),
        ("grid_step", 0.125),
    ]


def test_keys_that_joined_are_written_where_they_are_used():
    assert TAIL.to_json() == {
        "positions": "sampled",
        "position_fraction": 0.3,
        "hidden": "int8",
        "hidden_layers": [0, 2],
        "hidden_group": 24,
        "logits": "float16",
        "selection": "threshold",
        "top_k": 6,
        "threshold": 0.1,
        "grid_step": 0.125,
        "draws": 9,
        "draw_from": "tail",
        "draw_temperature": 2.0,
    }


@pytest.mark.parametrize(
    ("layout", "change", "match"),
    [
        (BALANCED, {"hidden": "float8"}, "hidden of a layout is 'float8'; expected one of float32, float16, bfloat16"),
        (BALANCED, {"positions": "some"}, "positions of a layout is 'some'; expected one of all, masked, sampled"),
        (BALANCED, {"position_fraction": 0.5}, "position_fraction of a layout is 0.5; expected 1, as"),
        (TAIL, {"position_fraction": 1.0}, "position_fraction of a layout is 1.0; expected more than 0, less than 1"),
        (BALANCED, {"hidden_group": 0}, "hidden_group of a layout is 0; expected 1 or more"),
        (BALANCED, {"top_k": 0}, "top_k of a layout is 0; expected 1 or more"),
        (DRAWS_ONLY, {"top_k": 5}, "top_k of a layout is 5; expected 0, as logits is none"),
        (DRAWS_ONLY, {"selection": "threshold"}, "selection of a layout is 'threshold'; expected top_k"),
        (DRAWS_ONLY, {"draw_from": "tail"}, "draw_from of a layout is 'tail'; expected all, as no ids are cached"),
        (BALANCED, {"draw_from": "tail"}, "draw_from of a layout is 'tail'; expected all, as there are no draws"),
        (BALANCED, {"draw_temperature": 2.0}, "draw_temperature of a layout is 2.0; expected 1"),
        (DRAWS, {"draws": 256}, "draws of a layout is 256; expected 0 to 255"),
        (THRESHOLD, {"top_k": 256}, "top_k of a layout is 256; expected at most 255, with a threshold"),
        (THRESHOLD, {"threshold": 0.0}, "threshold of a layout is 0.0; expected more than 0, at most 1"),
        (BALANCED, {"threshold": 0.1}, "threshold of a layout is 0.1; expected 0, as selection is top_k"),
        (BALANCED, {"threshold_temperature": 2.0}, "threshold_temperature of a layout is 2.0; expected 1"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(layout, change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(layout, **change)


def test_the_name_of_a_shard_comes_back_through_its_string():
    shard = ShardId("validation", 3, 123)
    assert str(shard) == "validation-v3-000123"
    assert ShardId.parse(str(shard)) == shard
    with pytest.raises(CorruptError, match="'train-0' is no shard name"):
        ShardId.parse("train-0")
