import dataclasses

import pytest

from storage import CorruptError, Layout, ShardId
from tests.storage.build import (
    ANSWERS,
    ATTENTION,
    ATTENTION_ONLY,
    BALANCED,
    CLASSES,
    DRAWS,
    DRAWS_ONLY,
    LAYOUTS,
    SCORE,
    TAIL,
    THRESHOLD,
)


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


def test_vectors_of_attention_are_written_with_their_widths_and_blocks_and_another_coding_than_int8():
    assert {name: value for name, value in ATTENTION.to_json().items() if name.startswith("attention")} == {
        "attention_vectors": ["queries", "keys", "values"],
        "attention_widths": [24, 12, 12],
        "attention_layers": [1, 2],
    }
    assert ATTENTION_ONLY.to_json()["attention_coding"] == "bfloat16"


def test_a_task_is_written_with_its_width_and_its_token_types_and_leaves_no_trace_without():
    assert not {"task", "task_width", "token_types"} & BALANCED.to_json().keys()
    assert {name: SCORE.to_json().get(name) for name in ("task", "task_width", "token_types")} == {
        "task": "classification",
        "task_width": 1,
        "token_types": None,
    }
    assert ANSWERS.to_json()["token_types"] is True
    assert ANSWERS.required_features == ("int8-groups", "task")


@pytest.mark.parametrize(
    ("layout", "changes", "match"),
    [
        (BALANCED, {"task_width": 2}, "task_width of a layout is 2; expected 0, as there is no task"),
        (BALANCED, {"token_types": True}, "token_types of a layout is True; expected false, as there is no task"),
        (BALANCED, {"task": "classification"}, "logits of a layout is 'grid'; expected none, as there is a task"),
        (CLASSES, {"task": "ranking"}, "task of a layout is 'ranking'; expected one of none, classification, answers"),
        (CLASSES, {"positions": "masked"}, "positions of a layout is 'masked'; expected all, as there is a task"),
        (CLASSES, {"draws": 4}, "draws of a layout is 4; expected 0, as there is a task"),
        (CLASSES, {"task_width": 0}, "task_width of a layout is 0; expected 1 or more"),
        (ANSWERS, {"task_width": 3}, "task_width of a layout is 3; expected 2 for answers"),
    ],
)
def test_a_layout_of_a_task_that_cannot_be_is_refused(layout, changes, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(layout, **changes)


def test_a_layout_says_which_vectors_of_which_width_layers_and_coding_it_has():
    assert ATTENTION.vectors(24) == {"hidden": 24, "queries": 24, "keys": 12, "values": 12}
    assert ATTENTION_ONLY.vectors(24) == {"queries": 16, "values": 8}
    assert (ATTENTION.layers("hidden"), ATTENTION.layers("keys")) == ((0, 1, 2), (1, 2))
    assert (ATTENTION_ONLY.layers("hidden"), ATTENTION_ONLY.layers("keys")) == ((), ())
    assert [ATTENTION_ONLY.coding(name) for name in ("hidden", "queries", "keys")] == ["none", "bfloat16", "none"]


@pytest.mark.parametrize(
    ("layout", "change", "match"),
    [
        (
            ATTENTION,
            {"attention_vectors": ("keys", "queries")},
            "attention_vectors of a layout is .*; expected some of",
        ),
        (ATTENTION, {"attention_widths": (24, 12)}, r"attention_widths of a layout is \(24, 12\); expected 3 widths"),
        (ATTENTION, {"attention_widths": (24, 12, 0)}, r"attention_widths of a layout is .*; expected 3 widths"),
        (
            ATTENTION,
            {"attention_layers": ()},
            r"attention_layers of a layout is \(\); expected numbers of blocks from 1",
        ),
        (
            ATTENTION,
            {"attention_layers": (0,)},
            r"attention_layers of a layout is \(0,\); expected .* from 1, ascending",
        ),
        (ATTENTION, {"attention_coding": "grid"}, "attention_coding of a layout is 'grid'; expected one of float32"),
        (ATTENTION, {"positions": "masked"}, "positions of a layout is 'masked'; expected all, as there are"),
        (
            BALANCED,
            {"attention_layers": (1,)},
            r"attention_layers of a layout is \(1,\); expected \(\), as there are no",
        ),
        (BALANCED, {"attention_coding": "float16"}, "attention_coding of a layout is 'float16'; expected int8, as"),
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
