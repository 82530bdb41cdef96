import dataclasses
import pickle

import numpy as np
import pytest

from storage import CachedSequences, CacheReader, CorruptError
from storage.codecs import vector_codec
from tests.storage.build import LAYOUTS, TEMPERATURES, build_cache, make_description, make_targets, sequence_lengths


class CountingReader(CacheReader):
    """A reader that notes what is loaded."""

    def __init__(self, folder):
        super().__init__(folder)
        self.loaded = []

    def load(self, shard, *arguments, **settings):
        self.loaded.append((shard.number, settings["targets"]))
        return super().load(shard, *arguments, **settings)


@pytest.fixture
def balanced(caches):
    return CountingReader(caches("balanced"))


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_sequence_has_what_the_teacher_said_of_it(caches, name):
    reader = CacheReader(caches(name))
    description, layout = reader.description, LAYOUTS[name]
    shard = reader.shards("train")[1]
    told = make_targets(description, shard)
    lengths = sequence_lengths(description, shard)
    start, count = description.span(shard)
    sequences = CachedSequences(reader)
    row = 0
    for place in range(count):
        example, tokens = (
            sequences[start + place],
            slice(told.sequence_offsets[place], told.sequence_offsets[place + 1]),
        )
        assert example["sequence_id"] == start + place
        assert len(example["input_ids"]) == lengths[place]
        np.testing.assert_array_equal(example["original_ids"], told.original_ids[tokens])
        np.testing.assert_array_equal(example["input_ids"], told.input_ids[tokens])
        np.testing.assert_array_equal(example["masked"], told.masked[tokens] == 1)
        rows = slice(row, row := row + len(example["positions"]))
        if layout.positions == "masked":
            np.testing.assert_array_equal(example["positions"], np.flatnonzero(example["masked"]))
        if layout.task == "none":
            np.testing.assert_array_equal(example["max_logit"], told.stat[rows, 0])
            np.testing.assert_array_equal(example["logsumexp"], told.stat[rows][:, [1, 3]])
            np.testing.assert_array_equal(example["entropy"], told.stat[rows][:, [2, 4]])
        if layout.hidden != "none":
            bound = vector_codec(layout, "hidden").error_bound(told.hidden[rows])
            assert (np.abs(example["hidden"] - told.hidden[rows]) <= bound).all()
    assert row == reader.shard_counts(shard)["rows"]


@pytest.mark.parametrize("name", ["exact", "balanced", "threshold", "tail"])
def test_the_best_ids_come_with_their_logits_and_shorter_rows_repeat_their_first(caches, name):
    reader = CacheReader(caches(name))
    told = make_targets(reader.description, reader.shards("train")[0])
    counts = told.top_count if told.top_count is not None else np.full(len(told.stat), LAYOUTS[name].top_k)
    ids, logits = (np.split(array.reshape(-1), np.cumsum(counts)[:-1]) for array in (told.top_ids, told.top_logits))
    row = 0
    for example in CachedSequences(reader)[: reader.description.span(reader.shards("train")[0])[1]]["top_ids"]:
        for found in example:
            assert (found[: counts[row]] == ids[row]).all()
            assert (found[counts[row] :] == ids[row][0]).all()
            row += 1
    first = CachedSequences(reader)[0]
    for place, found in enumerate(first["top_logits"]):
        assert found[0] == first["max_logit"][place]
        np.testing.assert_allclose(found[: counts[place]], logits[place], atol=0.07)
        assert np.isneginf(found[counts[place] :]).all()


@pytest.mark.parametrize("name", ["draws", "tail"])
def test_draws_come_with_their_counts_and_shorter_rows_count_their_filling_as_nothing(caches, name):
    for example in CachedSequences(CacheReader(caches(name)), columns=["draw_ids", "draw_counts"]):
        assert (example["draw_counts"].sum(1) == LAYOUTS[name].draws).all()
        filling = example["draw_counts"] == 0
        assert (example["draw_ids"] == np.where(filling, example["draw_ids"][:, :1], example["draw_ids"])).all()


@pytest.mark.parametrize("name", ["classes", "score", "answers"])
def test_a_sequence_of_a_task_without_a_label_has_nan_in_its_place(caches, name):
    for example in CachedSequences(CacheReader(caches(name))):
        assert np.isnan(example["label"]).all() == (example["sequence_id"] % 5 % 3 == 2)
        assert example["task_logits"].shape[-1] == LAYOUTS[name].task_width


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_column_is_described_as_it_comes(caches, name):
    sequences = CachedSequences(CacheReader(caches(name)))
    for example in sequences:
        assert list(example) == sequences.column_names
        for column, value in example.items():
            described = sequences.features[column]
            assert np.asarray(value).dtype == described.dtype
            assert np.ndim(value) == len(described.shape)
            lengths = {"tokens": len(example["input_ids"]), "rows": len(example["positions"])}
            for length, expected in zip(np.shape(value), described.shape, strict=True):
                assert length == lengths.get(expected, expected)


def test_places_slices_and_lists_of_places_work_as_in_a_datasets_dataset(balanced):
    sequences = CachedSequences(balanced)
    every = list(sequences)
    assert len(sequences) == len(every) == 10
    assert equal(sequences[-1], every[9])
    assert equal(sequences[np.int64(3)], every[3])
    assert sequences[2:9:3]["sequence_id"] == [2, 5, 8]
    assert sequences[[7, 1, 7]]["sequence_id"] == [7, 1, 7]
    assert [example["sequence_id"] for example in sequences.__getitems__([9, 0])] == [9, 0]
    assert sequences[5:5] == {name: [] for name in sequences.column_names}
    for outside in (10, -11):
        with pytest.raises(IndexError, match=f"sequence {outside} of 10"):
            sequences[outside]


def test_going_through_it_reads_every_shard_once_and_only_the_columns_asked_for(balanced):
    sequences = CachedSequences(balanced, columns=["top_ids", "sequence_id"])
    assert [list(example) for example in sequences] == [["sequence_id", "top_ids"]] * 10
    assert balanced.loaded == [(0, {"logits"}), (1, {"logits"})]


def test_no_more_shards_stay_in_memory_than_it_may_hold(balanced):
    sequences = CachedSequences(balanced, columns=["input_ids"], resident_shards=1)
    for place in (0, 1, 5, 6, 0):
        sequences[place]
    assert [number for number, _ in balanced.loaded] == [0, 1, 0]
    sequences[[0, 5, 1, 6]]
    assert [number for number, _ in balanced.loaded] == [0, 1, 0, 1]


def test_it_travels_to_another_process_without_the_shards_it_has_read(caches):
    sequences = CachedSequences(CacheReader(caches("tail")), "validation", columns=["hidden"])
    first = sequences[0]
    data = pickle.dumps(sequences)
    assert b"ShardArrays" not in data
    other = pickle.loads(data)
    assert (other.split, other.column_names, len(other)) == ("validation", ["hidden"], len(sequences))
    assert equal(other[0], first)


def test_sequences_are_given_as_stored_too_shard_by_shard(balanced):
    arrays = CachedSequences(balanced).arrays([8, 3, 1, 6])
    assert arrays.sequence_ids.tolist() == [3, 1, 8, 6]
    assert arrays.hidden["hidden"].dtype == np.int8


def test_each_mask_variant_is_a_view_of_its_own(tmp_path):
    reader = CacheReader(build_cache(tmp_path, make_description(LAYOUTS["masked"], variants=2)))
    one, other = (CachedSequences(reader, variant=variant) for variant in (0, 1))
    assert len(one) == len(other)
    assert [e["sequence_id"] for e in one] == [e["sequence_id"] for e in other]
    assert not equal(one[0], other[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "test"}, "the cache holds no split 'test'; it holds train, validation"),
        ({"variant": 1}, "variant 1 of train is not cached; expected 0 to 0"),
        ({"columns": ["draw_ids"]}, "the cache holds no 'draw_ids' of train; it holds sequence_id, original_ids"),
    ],
)
def test_what_the_cache_does_not_hold_is_refused(balanced, settings, message):
    with pytest.raises(ValueError, match=message):
        CachedSequences(balanced, **settings)


def test_a_damaged_shard_is_refused_when_it_is_reached(cache):
    sequences = CachedSequences(CacheReader(cache), columns=["input_ids"])
    file = next((cache / "shards" / "train-v0-000001.zarr" / "input_ids").rglob("c/*"))
    file.write_bytes(bytes([*file.read_bytes()[:-1], file.read_bytes()[-1] ^ 1]))
    assert len(sequences[0]["input_ids"]) == 2
    with pytest.raises(CorruptError, match="train-v0-000001"):
        sequences[5]


def test_temperatures_say_what_the_statistics_are_at(balanced):
    assert CachedSequences(balanced).temperatures == TEMPERATURES
    assert dataclasses.astuple(CachedSequences(balanced).features["logsumexp"]) == ("float32", ("rows", 2), None)
