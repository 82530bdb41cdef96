import dataclasses

import numpy as np
import pytest

from storage import CacheWork, InvalidTargetsError, ShardId
from tests.storage.build import BALANCED, EXACT, LAYOUTS, LOSSLESS, MASKED, make_description, make_targets

SHARD = ShardId("train", 0, 1)  # its sequences are 5 .. 9; sequence 5 has 4 tokens, sequence 6 has 11


def refused(layout, match, **arrays):
    """`arrays` maps a name to a function that damages a copy of that array, or to a replacement."""
    description = make_description(layout)
    targets = make_targets(description, SHARD)
    changed = {}
    for name, change in arrays.items():
        array = getattr(targets, name)
        if callable(change):
            array = array.copy()
            change(array)
            changed[name] = array
        else:
            changed[name] = change
    with pytest.raises(InvalidTargetsError, match=match):
        dataclasses.replace(targets, **changed).check(description, SHARD, layout)


def setter(index, value):
    def change(array):
        array[index] = value

    return change


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_targets_of_every_layout_pass(layout):
    description = make_description(layout)
    make_targets(description, SHARD).check(description, SHARD, layout)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["stat", "top_logits", "hidden"])
def test_what_is_not_finite_is_refused_with_shard_sequence_and_position(name, value):
    index = (6, 0) if name == "hidden" else 6
    match = rf"shard train-v0-000001 has .*{name}.* at sequence 6, position 2; expected finite.*; nothing was stored"
    refused(BALANCED, match, **{name: setter(index, value)})


def test_the_place_of_a_masked_row_is_that_of_its_token():
    description = make_description(MASKED)
    token = int(make_targets(description, SHARD).row_token[-1])
    sequence, position = (9, token - 25) if token >= 25 else (None, None)
    assert sequence is not None
    refused(MASKED, f"at sequence {sequence}, position {position};", hidden=setter((-1, 0), np.nan))


def test_hidden_states_beyond_the_range_of_float16_are_refused_where_they_are_stored_so():
    refused(EXACT, "largest magnitude in hidden = 70000 .* at most 65504", hidden=setter((3, 0, 1), 7e4))
    refused(BALANCED, "largest magnitude in hidden .* at most 8.31901e", hidden=setter((3, 0, 1), 9e6))
    description = make_description(LOSSLESS)
    targets = make_targets(description, SHARD)
    targets.hidden[3, 0, 1] = 7e4
    targets.check(description, SHARD, LOSSLESS)


def test_logits_beyond_the_range_of_float16_are_refused():
    def far(array):
        array[0, -1] = -7e4

    refused(EXACT, "largest magnitude in top_logits = 70000", top_logits=far)


@pytest.mark.parametrize("column", [1, 3])
@pytest.mark.parametrize("offset", [-100, 100])
def test_a_logsumexp_outside_its_bounds_is_refused(column, offset):
    def change(array):
        array[4, column] += offset

    refused(BALANCED, rf"logsumexp at T = {1.0 if column == 1 else 2.0} .*sequence 6, position 0", stat=change)


@pytest.mark.parametrize("value", [-0.1, 4.0])
def test_an_entropy_outside_its_bounds_is_refused(value):
    refused(BALANCED, "entropy at T = 1.0", stat=setter((0, 2), value))


def test_logits_of_another_row_are_noticed_by_their_maximum():
    def reverse(array):
        array[:] = array[::-1].copy()

    refused(BALANCED, "the first of top_logits", top_logits=reverse)


def test_logits_that_rise_are_refused():
    def swap(array):
        array[2, [3, 4]] = array[2, [4, 3]]

    refused(BALANCED, "descending, among equal ones the smaller id first", top_logits=swap)


def test_equal_logits_come_in_the_order_of_their_ids():
    def equal(array):
        array[2, 4] = array[2, 3]

    description = make_description(BALANCED)
    ids = make_targets(description, SHARD).top_ids
    ids[2, 3], ids[2, 4] = max(ids[2, 3:5]), min(ids[2, 3:5])
    refused(BALANCED, "the smaller id first", top_logits=equal, top_ids=ids)
    ids[2, 3], ids[2, 4] = ids[2, 4], ids[2, 3]
    targets = dataclasses.replace(make_targets(description, SHARD), top_ids=ids)
    equal(targets.top_logits)
    targets.check(description, SHARD, BALANCED)


@pytest.mark.parametrize("name", ["original_ids", "input_ids", "top_ids"])
@pytest.mark.parametrize("value", [50, -1])
def test_ids_outside_the_vocabulary_are_refused(name, value):
    refused(BALANCED, rf"{name}.* expected 0 .. 49", **{name: setter(0, value)})


def test_a_mask_that_is_neither_0_nor_1_is_refused():
    refused(BALANCED, "masked 2 at sequence 5, position 3; expected 0 or 1", masked=setter(3, 2))


def test_an_input_that_differs_where_nothing_is_masked_is_refused():
    def change(array):
        array[:] = (array + 1) % 50

    refused(BALANCED, "expected the original id, as masked is 0 there", input_ids=change)


@pytest.mark.parametrize("offsets", [[0, 4, 3, 20, 29, 35], [1, 4, 15, 26, 29, 35], [0, 4, 15, 26, 29, 34]])
def test_offsets_that_do_not_cover_the_tokens_are_refused(offsets):
    refused(BALANCED, "sequence_offsets that do not ascend", sequence_offsets=np.array(offsets, np.uint32))


def test_rows_that_are_not_the_masked_tokens_are_refused():
    masked = make_targets(make_description(MASKED), SHARD).masked
    unmasked_token = int(np.argmin(masked))
    refused(MASKED, "entries in row_token that are not its", row_token=setter(0, unmasked_token))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden": None}, r"hidden: None; expected float32 \(\d+, 1, 24\)"),
        ({"hidden": np.zeros((3, 1, 24), np.float32)}, r"hidden: float32 \(3, 1, 24\); expected float32"),
        ({"stat": np.zeros((3, 5), np.float64)}, "stat: float64"),
        ({"top_ids": np.zeros((3, 8), np.float32)}, "top_ids: float32"),
        ({"row_token": np.zeros(3, np.uint32)}, r"row_token: integers \(3,\); expected None"),
        ({"sequence_offsets": np.zeros(3, np.uint32)}, r"sequence_offsets: integers \(3,\); expected integers \(6,\)"),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_refused(changes, match):
    refused(BALANCED, match, **changes)


def test_nothing_is_stored_when_targets_are_refused(tmp_path):
    description = make_description()
    targets = make_targets(description, SHARD)
    targets.stat[0, 0] = np.nan
    with CacheWork.open(tmp_path, description) as work:
        with pytest.raises(InvalidTargetsError):
            work.publish(SHARD, targets, {}, {})
        assert not any((work.folder / "shards").iterdir())
        assert SHARD in work.missing()
