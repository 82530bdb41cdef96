import dataclasses

import numpy as np
import pytest

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
    per_row = {"stat": arrays.stat, "top_ids": arrays.top_ids, **arrays.logits, **arrays.hidden}
    return {
        "id": arrays.sequence_ids[index : index + 1],
        "original_ids": arrays.original_ids[start:stop],
        "input_ids": arrays.input_ids[start:stop],
        "masked": arrays.masked[start:stop],
        "position": arrays.row_token[first:last] - start,
        **{name: array[first:last] for name, array in per_row.items() if array is not None},
    }


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
