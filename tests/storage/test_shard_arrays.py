import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import CacheReader, ShardArrays
from tests.storage.build import LAYOUTS


@pytest.fixture(params=LAYOUTS)
def shards(request, caches):
    reader = CacheReader(caches(request.param))
    return [reader.load(shard) for shard in reader.shards("train")]


def one_by_one(arrays: ShardArrays, index: int) -> dict[str, np.ndarray]:
    """Everything about one sequence, cut out by slices."""
    start, stop = arrays.sequence_offsets[index : index + 2]
    first, last = arrays.row_offsets[index : index + 2]
    per_row = {"stat": arrays.stat, "top_count": arrays.top_count, "draw_count": arrays.draw_count, **arrays.vectors}
    per_entry = {"top_ids": arrays.top_ids, **arrays.logits}
    per_token = {"token_types": arrays.token_types}
    per_sequence = {"task_labelled": arrays.task_labelled, "task_label": arrays.task_label}
    (per_token if arrays.task == "answers" else per_sequence)["task_logits"] = arrays.task_logits
    per_draw = {"draw_ids": arrays.draw_ids, "draw_weight": arrays.draw_weight}
    cut = {
        **cut_rows(per_row, first, last),
        **cut_rows(per_entry, *spans(arrays.top_count, first, last)),
        **cut_rows(per_token, start, stop),
        **cut_rows(per_sequence, index, index + 1),
        **cut_rows(per_draw, *spans(arrays.draw_count, first, last)),
    }
    return {
        "id": arrays.sequence_ids[index : index + 1],
        "original_ids": arrays.original_ids[start:stop],
        "input_ids": arrays.input_ids[start:stop],
        "masked": arrays.masked[start:stop],
        "position": arrays.row_token[first:last] - start,
        **cut,
    }


def cut_rows(arrays: dict[str, np.ndarray | None], first: int, last: int) -> dict[str, np.ndarray]:
    return {name: array[first:last] for name, array in arrays.items() if array is not None}


def spans(count: np.ndarray | None, first: int, last: int) -> tuple[int, int]:
    """Where the entries of these rows lie, by summing up; where there is no count, an entry is a row."""
    return (first, last) if count is None else (sum(count[:first].tolist()), sum(count[:last].tolist()))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_row_belongs_to_a_token_of_its_sequence(shards):
    for arrays in shards:
        for index in range(len(arrays.sequence_ids)):
            first, last = arrays.row_offsets[index : index + 2]
            inside = arrays.row_token[first:last]
            assert np.all(inside >= arrays.sequence_offsets[index])
            assert np.all(inside < arrays.sequence_offsets[index + 1])
        assert arrays.row_offsets[-1] == arrays.rows


@pytest.mark.parametrize("chosen", [[3, 0, 4], [2], [1, 1], [], [0, 1, 2, 3, 4]])
def test_select_gives_each_sequence_as_slices_do_in_the_order_asked_for(shards, chosen):
    batch = shards[0].select(np.array(chosen, dtype=np.int64))
    assert len(batch.sequence_ids) == len(chosen)
    for place, index in enumerate(chosen):
        assert_same(one_by_one(batch, place), one_by_one(shards[0], index))


def test_concatenate_gives_the_sequences_of_all_parts_in_order(shards):
    parts = [shards[1].select(np.array([4, 1])), shards[0].select(np.array([], dtype=np.int64)), shards[0]]
    batch = ShardArrays.concatenate(parts)
    expected = [one_by_one(part, index) for part in parts for index in range(len(part.sequence_ids))]
    assert len(batch.sequence_ids) == len(expected) == 7
    for place, sequence in enumerate(expected):
        assert_same(one_by_one(batch, place), sequence)


def test_selecting_from_a_concatenation_equals_concatenating_selections(shards):
    whole = ShardArrays.concatenate(shards).select(np.array([7, 2]))
    parts = ShardArrays.concatenate([shards[1].select(np.array([2])), shards[0].select(np.array([2]))])
    for field in dataclasses.fields(ShardArrays):
        left, right = getattr(whole, field.name), getattr(parts, field.name)
        np.testing.assert_equal(left, right)


def test_concatenating_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        ShardArrays.concatenate([])


@pytest.mark.parametrize("name", ["threshold", "tail", "draws"])
def test_offsets_say_where_the_entries_of_each_row_lie(caches, name):
    reader = CacheReader(caches(name))
    arrays = reader.load(reader.shards("train")[0])
    for offsets, count, ids in (
        (arrays.top_offsets, arrays.top_count, arrays.top_ids),
        (arrays.draw_offsets, arrays.draw_count, arrays.draw_ids),
    ):
        if count is None:
            assert offsets is None
        else:
            assert np.diff(offsets).tolist() == count.tolist()
            assert (offsets[0], offsets[-1]) == (0, len(ids))


ROW = st.tuples(
    st.lists(st.integers(0, 65_534), min_size=1, max_size=4), st.lists(st.integers(0, 65_534), min_size=1, max_size=3)
)
SEQUENCES = st.lists(st.lists(ROW, max_size=4), min_size=1, max_size=5)


def arrays_of(sequences: list) -> ShardArrays:
    """A `ShardArrays` whose sequences have these rows, and a row is (its top ids, its drawn ids)."""
    rows = [row for sequence in sequences for row in sequence]
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    tops, draws = [top for top, _ in rows], [drawn for _, drawn in rows]
    top_ids = np.array([number for top in tops for number in top], np.uint16)
    drawn_ids = np.array([number for drawn in draws for number in drawn], np.uint16)
    return ShardArrays(
        sequence_ids=np.arange(len(sequences)),
        sequence_offsets=offsets.astype(np.uint32),
        original_ids=np.zeros(len(rows), np.uint16),
        input_ids=np.zeros(len(rows), np.uint16),
        masked=np.zeros(len(rows), np.uint8),
        row_token=np.arange(len(rows), dtype=np.uint32),
        row_offsets=offsets.astype(np.int64),
        stat=np.zeros((len(rows), 3), np.float32),
        top_ids=top_ids,
        logits={"top_gap": (top_ids % 250).astype(np.uint8)},
        hidden={},
        hidden_layers=(),
        top_count=np.array([len(top) for top in tops], np.uint8),
        draw_count=np.array([len(drawn) for drawn in draws], np.uint8),
        draw_ids=drawn_ids,
        draw_weight=(drawn_ids % 255 + 1).astype(np.uint8),
    )


def rows_of(arrays: ShardArrays) -> list:
    """The other way round, entry by entry."""
    tops, draws = iter(arrays.top_ids.tolist()), iter(arrays.draw_ids.tolist())
    rows = [
        ([next(tops) for _ in range(top)], [next(draws) for _ in range(drawn)])
        for top, drawn in zip(arrays.top_count.tolist(), arrays.draw_count.tolist(), strict=True)
    ]
    assert next(tops, None) is next(draws, None) is None
    assert arrays.logits["top_gap"].tolist() == [number % 250 for number in arrays.top_ids.tolist()]
    assert arrays.draw_weight.tolist() == [number % 255 + 1 for number in arrays.draw_ids.tolist()]
    return [rows[start:stop] for start, stop in itertools.pairwise(arrays.row_offsets.tolist())]


@settings(deadline=None)
@given(SEQUENCES, st.data())
def test_ragged_rows_are_selected_as_lists_are(sequences, data):
    chosen = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=6))
    selected = arrays_of(sequences).select(np.array(chosen, dtype=np.int64))
    assert rows_of(selected) == [sequences[index] for index in chosen]


@settings(deadline=None)
@given(st.lists(SEQUENCES, min_size=1, max_size=3))
def test_ragged_rows_are_concatenated_as_lists_are(parts):
    whole = ShardArrays.concatenate([arrays_of(sequences) for sequences in parts])
    assert rows_of(whole) == [sequence for sequences in parts for sequence in sequences]
    assert rows_of(whole.select(np.array([0]))) == parts[0][:1]
