import dataclasses

import numpy as np
import pytest

from storage import InvalidTargetsError, ShardId
from storage.codecs import encode_hidden, encode_vectors
from tests.storage.build import (
    ANSWERS,
    ATTENTION,
    ATTENTION_ONLY,
    BALANCED,
    CLASSES,
    DRAWS,
    EXACT,
    LAYOUTS,
    LOSSLESS,
    MASKED,
    SCORE,
    TAIL,
    THRESHOLD,
    make_description,
    make_targets,
)

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

    refused(EXACT, r"top_logits = .*-7.*e\+04\] at .*; expected finite and of magnitude at most 65504", top_logits=far)


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


def first_row_with(targets, least):
    """The first row that has so many entries, and where these start among all entries."""
    row = int(np.argmax(targets.top_count >= least))
    return row, int(targets.top_count[:row].sum())


def test_bfloat16_takes_all_that_does_not_round_to_infinity():
    refused(THRESHOLD, r"largest magnitude in hidden .* at most 3.3961\d*e\+38", hidden=setter((3, 0, 1), 3.3962e38))


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (7, "7")])
def test_a_row_has_one_entry_or_more_and_no_more_than_top_k(value, shown):
    def change(array):
        array[2] += array[1] - value  # the sum stays
        array[1] = value

    description = make_description(THRESHOLD)
    count = make_targets(description, SHARD).top_count.astype(np.int64)
    change(count)
    refused(THRESHOLD, f"top_count = {shown} at sequence 5, position 1; expected 1 .. 6", top_count=count)


def test_counts_that_do_not_sum_to_the_entries_are_refused():
    def add(array):
        array[0] += 1

    refused(THRESHOLD, r"top_ids: integers \(\d+,\); expected integers \(\d+,\)", top_count=add)
    refused(DRAWS, r"draw_ids: integers \(\d+,\); expected integers \(\d+,\)", draw_count=add)


def test_entries_of_a_ragged_row_descend_and_its_first_is_the_maximum():
    _, start = first_row_with(make_targets(make_description(THRESHOLD), SHARD), 3)

    def swap(first):
        def change(array):
            array[[first, first + 1]] = array[[first + 1, first]]

        return change

    refused(THRESHOLD, "the first of top_logits", top_logits=swap(start))
    refused(THRESHOLD, "top_logits = .* descending, among equal ones the smaller", top_logits=swap(start + 1))


def test_an_entry_below_the_threshold_is_refused_unless_it_is_the_best():
    targets = make_targets(make_description(THRESHOLD), SHARD)
    row, start = first_row_with(targets, 2)
    last = start + int(targets.top_count[row]) - 1
    refused(THRESHOLD, r"expected logits with p >= 0.05 at T = 2 after the first", top_logits=setter(last, -30))
    alone = dataclasses.replace(THRESHOLD, threshold=1.0)
    description = make_description(alone)
    make_targets(description, SHARD).check(description, SHARD, alone)


@pytest.mark.parametrize("value", [50, -1])
@pytest.mark.parametrize(("layout", "name"), [("threshold", "top_ids"), ("draws", "draw_ids")])
def test_ids_of_ragged_rows_are_of_the_vocabulary(layout, name, value):
    refused(LAYOUTS[layout], rf"{name} = .* expected 0 .. 49", **{name: setter(-1, value)})


@pytest.mark.parametrize("name", ["draws", "draws_only", "tail"])
def test_the_ids_of_a_row_are_drawn_once_each_in_ascending_order(name):
    targets = make_targets(make_description(LAYOUTS[name]), SHARD)
    row = int(np.argmax(targets.draw_count >= 2))
    start = int(targets.draw_count[:row].sum())
    again = setter(start + 1, targets.draw_ids[start])
    refused(LAYOUTS[name], r"draw_ids = .* at sequence \d, position \d+; expected strictly ascending", draw_ids=again)


def test_weights_say_how_often_each_id_was_drawn_and_sum_to_the_draws():
    def add(array):
        array[0] += 1

    refused(DRAWS, "the sum of draw_weight = 21 at .*; expected the number of draws, 20", draw_weight=add)
    refused(DRAWS, "draw_weight = .* expected 1 .. 20", draw_weight=setter(0, 0))


def test_all_draws_may_fall_on_one_id():
    description = make_description(DRAWS)
    targets = make_targets(description, SHARD)
    ones = np.ones(targets.rows, np.uint8)
    targets = dataclasses.replace(
        targets, draw_count=ones, draw_ids=np.full(targets.rows, 49), draw_weight=np.full(targets.rows, 20, np.uint8)
    )
    targets.check(description, SHARD, DRAWS)


def test_a_draw_from_the_tail_is_not_among_the_cached_ids_of_its_row():
    description = make_description(TAIL)
    targets = make_targets(description, SHARD)
    row = targets.rows - 1
    count, ids = targets.draw_count.copy(), targets.draw_ids[: -int(targets.draw_count[-1])]
    weight = targets.draw_weight[: len(ids)]
    count[row] = 1
    first = int(targets.top_count[:row].sum())
    for drawn in (targets.top_ids[first], targets.top_ids[-1]):
        refused(
            TAIL,
            rf"draw_ids = \[{drawn}\] at sequence 9, .*expected ids that are not in top_ids",
            draw_count=count,
            draw_ids=np.append(ids, drawn),
            draw_weight=np.append(weight, 9).astype(np.uint8),
        )


def test_sampled_rows_are_ascending_tokens_with_every_masked_one_among_them():
    targets = make_targets(make_description(TAIL), SHARD)
    unmasked_row = int(np.argmin(targets.masked[targets.row_token]))
    masked_row = int(np.argmax(targets.masked[targets.row_token]))
    assert targets.masked[targets.row_token[unmasked_row]] == 0
    tokens = len(targets.masked)
    spare = int(np.setdiff1d(np.arange(tokens), targets.row_token)[0])
    replaced = np.sort(np.append(np.delete(targets.row_token, masked_row), np.uint32(spare)))
    refused(TAIL, "masked 1 at sequence 6, position 0; expected a row for it in row_token", row_token=replaced)
    refused(TAIL, f"ascend strictly below the number of tokens, {tokens}", row_token=setter(-1, tokens))
    refused(TAIL, "ascend strictly", row_token=setter(1, targets.row_token[0]))


def test_a_shard_without_rows_passes_in_every_layout():
    for layout in (MASKED, DRAWS, TAIL):
        description = make_description(layout)
        full = make_targets(description, SHARD)
        nothing = {
            field.name: array[:0]
            for field in dataclasses.fields(full)
            if (array := getattr(full, field.name)) is not None
            and field.name not in ("sequence_offsets", "original_ids", "input_ids", "masked", "encoded", "attention")
        }
        unmasked = {"masked": np.zeros_like(full.masked), "input_ids": full.original_ids}
        targets = dataclasses.replace(full, **nothing, **unmasked)
        targets.check(description, SHARD, layout)
        assert all(len(array) == 0 for name, array in targets.encode(description, layout).items() if name in nothing)


def coded(layout):
    """Targets whose hidden states come in their stored form, as a GPU sends them."""
    description = make_description(layout)
    targets = make_targets(description, SHARD)
    encoded = encode_hidden(layout, targets.hidden)
    return description, dataclasses.replace(targets, hidden=None, encoded=encoded)


@pytest.mark.parametrize("layout", [BALANCED, EXACT, LOSSLESS])
def test_hidden_states_that_come_coded_pass_and_are_stored_as_they_are(layout):
    description, targets = coded(layout)
    targets.check(description, SHARD, layout)
    expected = make_targets(description, SHARD).encode(description, layout)
    found = targets.encode(description, layout)
    assert all(np.array_equal(found[name], array) for name, array in expected.items())


@pytest.mark.parametrize("layout", [BALANCED, EXACT, LOSSLESS])
def test_a_coded_hidden_state_that_is_not_finite_is_refused_with_its_place(layout):
    description, targets = coded(layout)
    name = "hidden_scale" if layout is BALANCED else "hidden"
    targets.encoded[name][6, 0, 0] = np.inf
    with pytest.raises(
        InvalidTargetsError, match=r"has the largest magnitude in hidden = .* at sequence 6, position 2"
    ):
        targets.check(description, SHARD, layout)


def test_vectors_of_attention_are_looked_at_as_hidden_states_are():
    for layout, part in ((ATTENTION, "values"), (ATTENTION_ONLY, "queries")):
        description = make_description(layout)
        targets = make_targets(description, SHARD)
        targets.check(description, SHARD, layout)
        targets.attention[part][6, 0, 0] = np.nan
        with pytest.raises(InvalidTargetsError, match=rf"magnitude in {part} = nan at sequence 6, position 2"):
            targets.check(description, SHARD, layout)
        with np.errstate(invalid="ignore"):
            encoded = {
                name: array
                for name, values in targets.attention.items()
                for name, array in encode_vectors(layout, name, values).items()
            }
        stored = dataclasses.replace(targets, attention={}, encoded=encoded)
        with pytest.raises(InvalidTargetsError, match=rf"magnitude in {part} = .* at sequence 6, position 2"):
            stored.check(description, SHARD, layout)
        missing = dataclasses.replace(targets, attention={name: targets.attention[name] for name in ("queries",)})
        with pytest.raises(InvalidTargetsError, match=r"has (keys|values): None; expected float32 \("):
            missing.check(description, SHARD, layout)


def test_a_code_that_no_codec_gives_is_refused():
    description, targets = coded(BALANCED)
    targets.encoded["hidden"][6, 0, 0] = -128
    with pytest.raises(InvalidTargetsError, match="has a value in hidden that no codec gives"):
        targets.check(description, SHARD, BALANCED)


def test_coded_arrays_of_another_shape_or_layout_are_refused():
    description, targets = coded(BALANCED)
    short = dataclasses.replace(
        targets, encoded={**targets.encoded, "hidden_scale": targets.encoded["hidden_scale"][1:]}
    )
    with pytest.raises(InvalidTargetsError, match=r"has hidden_scale: float16 \(.*; expected float16"):
        short.check(description, SHARD, BALANCED)
    strange = dataclasses.replace(targets, encoded={**targets.encoded, "draw_ids": np.zeros(3, np.uint16)})
    with pytest.raises(InvalidTargetsError, match="has draw_ids, which its layout does not have"):
        strange.check(description, SHARD, BALANCED)


def read_back(targets):
    """The sequences as a token store gives them."""
    return targets.sequence_offsets.astype(np.int64), targets.original_ids.copy()


def test_targets_of_the_sequences_that_the_token_store_has_pass():
    description = make_description(BALANCED)
    targets = make_targets(description, SHARD)
    targets.check_against(description, SHARD, *read_back(targets))


def test_a_token_that_was_changed_on_the_way_is_refused_with_its_place():
    description = make_description(BALANCED)
    targets = make_targets(description, SHARD)
    offsets, ids = read_back(targets)
    ids[6] += 1
    with pytest.raises(
        InvalidTargetsError, match=r"shard train-v0-000001 has original_ids .* at sequence 6, position 2"
    ):
        targets.check_against(description, SHARD, offsets, ids)


@pytest.mark.parametrize("name", ["original_ids", "sequence_offsets"])
@pytest.mark.parametrize("change", [lambda array: array[:-1], lambda array: array[None]])
def test_what_does_not_have_the_shape_of_the_tokens_is_refused_before_it_is_checked(name, change):
    description = make_description(BALANCED)
    targets = make_targets(description, SHARD)
    read = read_back(targets)
    with pytest.raises(InvalidTargetsError, match=r"shard train-v0-000001 has .*; expected"):
        dataclasses.replace(targets, **{name: change(getattr(targets, name))}).check_against(description, SHARD, *read)


@pytest.mark.parametrize("change", ["missing", "twice", "last one missing"])
def test_a_sequence_that_is_missing_or_there_twice_is_refused_with_its_number(change):
    description = make_description(BALANCED)
    targets = make_targets(description, SHARD)
    offsets, ids = read_back(targets)
    lengths = np.diff(offsets)
    changed = {
        "missing": np.delete(lengths, 1),
        "twice": np.insert(lengths, 1, lengths[0]),
        "last one missing": lengths[:-1],
    }[change]
    shorter = dataclasses.replace(targets, sequence_offsets=np.cumsum([0, *changed]).astype(np.uint32))
    number = 9 if change == "last one missing" else 6
    with pytest.raises(InvalidTargetsError, match=f"in sequence {number}, position 0 onwards; expected"):
        shorter.check_against(description, SHARD, offsets, ids)


@pytest.mark.parametrize(
    ("layout", "name", "index", "value", "match"),
    [
        (CLASSES, "task_logits", (3, 1), np.nan, r"has task_logits \[.*\] in its sequence 3; expected finite numbers"),
        (ANSWERS, "task_logits", (6, 0), np.inf, r"has task_logits \[.*\] in its sequence 1; expected finite numbers"),
        (CLASSES, "task_label", 1, 3, r"has task_label \[3.\] for its sequence 1; expected a class, 0 .. 2"),
        (CLASSES, "task_label", 1, 0.5, r"has task_label \[0.5\] for its sequence 1; expected a class, 0 .. 2"),
        (CLASSES, "task_label", 2, 1, r"has task_label \[1.\] for its sequence 2; expected 0, as it has no label"),
        (SCORE, "task_label", 0, np.nan, r"has task_label \[nan\] for its sequence 0; expected a number"),
        (
            ANSWERS,
            "task_label",
            (0, 1),
            4,
            r"has task_label \[.* 4.\] for its sequence 0; expected tokens of the sequence",
        ),
        (CLASSES, "task_labelled", 0, 2, "has task_labelled up to 2; expected 0 or 1"),
        (ANSWERS, "token_types", 5, 2, "has token_types up to 2; expected 0 or 1"),
        (CLASSES, "masked", 4, 1, "masks tokens; expected none"),
    ],
)
def test_what_a_task_cannot_have_is_refused(layout, name, index, value, match):
    refused(layout, f"shard train-v0-000001 {match}", **{name: setter(index, value)})


@pytest.mark.parametrize(
    ("layout", "name", "value", "match"),
    [
        (CLASSES, "task_logits", None, r"has task_logits: None; expected float32 \(5, 3\)"),
        (
            ANSWERS,
            "task_logits",
            np.zeros((5, 2), np.float32),
            r"has task_logits: float32 \(5, 2\); expected float32 \(35, 2\)",
        ),
        (
            ANSWERS,
            "task_label",
            np.zeros((5, 1), np.float32),
            r"has task_label: float32 \(5, 1\); expected float32 \(5, 2\)",
        ),
        (SCORE, "token_types", np.zeros(35, np.uint8), r"has token_types: integers \(35,\); expected None"),
        (BALANCED, "task_labelled", np.zeros(5, np.uint8), r"has task_labelled: integers \(5,\); expected None"),
    ],
)
def test_arrays_of_a_task_have_the_shapes_of_its_head(layout, name, value, match):
    refused(layout, match, **{name: value})
