import json
import pickle
import shutil

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from storage import CacheReader, CorruptError, FormatError, IncompleteError, canonical_json
from storage.manifest import ShardManifest
from tests.storage.build import LAYOUTS, make_targets
from tests.storage.damage import GROUP, SHARD, chunk_file, flip_a_bit, vouch_for_what_is_there

ARRAYS = [
    "sequence_offsets",
    "original_ids",
    "input_ids",
    "masked",
    "row_token",
    "stat",
    "top_ids",
    "top_gap",
    "hidden",
    "hidden_scale",
]
UNCODED = [
    "sequence_offsets",
    "original_ids",
    "input_ids",
    "masked",
    "stat",
    "top_ids",
    "top_count",
    "draw_count",
    "draw_ids",
    "draw_weight",
]


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_read_is_what_was_published_up_to_the_coding(caches, name):
    reader = CacheReader(caches(name))
    for shard in reader.description.shard_ids():
        layout = reader.description.splits[shard.split].layout
        targets, arrays = make_targets(reader.description, shard), reader.load(shard)
        for field in UNCODED:
            np.testing.assert_array_equal(getattr(arrays, field), getattr(targets, field))
        rows = np.arange(arrays.tokens) if targets.row_token is None else targets.row_token
        np.testing.assert_array_equal(arrays.row_token, rows)
        start, count = reader.description.span(shard)
        assert arrays.sequence_ids.tolist() == list(range(start, start + count))
        if targets.hidden is not None:
            tolerance = {"float32": 0, "float16": 2e-3, "bfloat16": 2e-2, "int8": 2e-2}[layout.hidden]
            np.testing.assert_allclose(arrays.decoded_hidden(layout), targets.hidden, rtol=0, atol=tolerance)
        for part, expected in targets.attention.items():
            np.testing.assert_allclose(arrays.decoded_attention(layout, part), expected, rtol=0, atol=2e-2)
        if targets.top_logits is not None:
            tolerance = {"float32": 0, "float16": 8e-3, "grid": 0.0626}[layout.logits]
            np.testing.assert_allclose(arrays.decoded_logits(layout), targets.top_logits, rtol=0, atol=tolerance)


OF_TARGET = {"logits": ("top_ids", "top_count"), "draws": ("draw_count", "draw_ids", "draw_weight")}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("targets", [set(), {"logits"}, {"hidden"}, {"draws", "hidden"}, {"queries"}])
def test_targets_that_nobody_wants_are_left_out_and_the_rest_is_the_same(caches, name, targets):
    reader = CacheReader(caches(name))
    everything, found = reader.load(SHARD), reader.load(SHARD, targets=targets)
    for field in ("sequence_ids", "sequence_offsets", "original_ids", "input_ids", "masked", "row_token", "stat"):
        np.testing.assert_array_equal(getattr(found, field), getattr(everything, field))
    for target, field in (("logits", "logits"), ("hidden", "hidden")):
        expected = getattr(everything, field) if target in targets else {}
        assert getattr(found, field).keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(getattr(found, field)[key], array)
    wanted = {name for name in everything.attention if name.removesuffix("_scale") in targets}
    assert found.attention.keys() == wanted
    for key in wanted:
        np.testing.assert_array_equal(found.attention[key], everything.attention[key])
    for target, fields in OF_TARGET.items():
        for field in fields:
            expected = getattr(everything, field) if target in targets else None
            np.testing.assert_array_equal(getattr(found, field), expected)


def test_what_is_read_is_checked_and_of_the_rest_that_it_is_there(cache):
    flip_a_bit(chunk_file(cache, "hidden"), 20)
    CacheReader(cache).load(SHARD, targets={"logits"})
    with pytest.raises(CorruptError, match=r"hidden .* crc32c"):
        CacheReader(cache).load(SHARD, targets={"hidden"})
    reader = CacheReader(cache)
    chunk_file(cache, "hidden").unlink()
    with pytest.raises(CorruptError, match=r"hidden/c/0/0/0 is missing"):
        reader.load(SHARD, targets={"logits"})


def test_counts_are_the_sums_over_the_shards(caches):
    reader = CacheReader(caches("masked"))
    loaded = [reader.load(shard) for shard in reader.shards("train")]
    assert reader.counts["train"] == {
        "sequences": 10,
        "tokens": sum(arrays.tokens for arrays in loaded),
        "rows": sum(arrays.rows for arrays in loaded),
        "masked": sum(int(arrays.masked.sum()) for arrays in loaded),
    }
    assert reader.shard_counts(SHARD)["rows"] == loaded[1].rows


def test_entries_and_draws_are_counted_too_in_the_splits_that_have_them(caches):
    reader = CacheReader(caches("tail"))
    loaded = [reader.load(shard) for shard in reader.shards("train")]
    assert reader.counts["train"]["entries"] == sum(len(arrays.top_ids) for arrays in loaded)
    assert reader.counts["train"]["draws"] == sum(len(arrays.draw_ids) for arrays in loaded)
    assert reader.shard_counts(SHARD)["draws"] == len(loaded[1].draw_ids)
    assert reader.counts["validation"].keys() == {"sequences", "tokens", "rows", "masked"}


def test_figures_hold_what_the_writer_recorded_and_the_saturated_gaps(caches):
    assert CacheReader(caches("masked")).shard_figures(SHARD) == {"retained_mass": {"1.0": 0.9}, "saturated_gaps": 0}


def test_a_split_that_is_not_cached_has_no_shards(caches):
    assert CacheReader(caches("masked")).shards("test") == []


def test_a_reader_can_be_sent_to_another_process(caches):
    reader = pickle.loads(pickle.dumps(CacheReader(caches("masked"))))
    assert reader.load(SHARD).rows == reader.shard_counts(SHARD)["rows"]


@pytest.mark.parametrize("name", ["manifest.json", "cache.json"])
def test_an_unfinished_cache_is_refused_with_the_commands_to_get_one(cache, name):
    (cache / name).unlink()
    with pytest.raises(IncompleteError, match=rf"no {name}.*pipeline cache-teacher.*dvc pull"):
        CacheReader(cache)


def test_a_folder_that_does_not_exist_is_refused_likewise(tmp_path):
    with pytest.raises(IncompleteError, match="no finished cache is there"):
        CacheReader(tmp_path / "nothing")


def test_a_newer_cache_is_refused_before_anything_else(cache):
    value = json.loads((cache / "cache.json").read_bytes())
    (cache / "cache.json").write_bytes(canonical_json({**value, "required_features": ["entropy-coding"]}))
    with pytest.raises(FormatError, match="entropy-coding"):
        CacheReader(cache)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_missing_chunk_file_is_noticed_when_opening_and_when_it_vanishes_later(cache, array):
    reader = CacheReader(cache)
    chunk_file(cache, array).unlink()
    with pytest.raises(CorruptError, match=rf"{GROUP}/{array}/c/0.* is missing"):
        reader.load(SHARD)
    with pytest.raises(CorruptError, match=rf"{GROUP}/{array}/c/0.* is missing"):
        CacheReader(cache)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize(
    ("engine", "what"),
    [("own", "is missing: it has no chunk file"), ("zarr", "holds fill values"), ("zarrs", "holds fill values")],
)
def test_a_missing_chunk_that_the_manifest_does_not_know_is_noticed(cache, array, engine, what):
    chunk_file(cache, array).unlink()
    vouch_for_what_is_there(cache)
    with pytest.raises(CorruptError, match=rf"shard {SHARD}: {array} {what}"):
        CacheReader(cache, engine=engine).load(SHARD)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("size", [0, 7])
def test_a_truncated_chunk_file_is_noticed(cache, array, size):
    reader = CacheReader(cache)
    with chunk_file(cache, array).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(CorruptError, match=rf"{array}.*holds {size} bytes; expected \d+"):
        reader.load(SHARD)
    vouch_for_what_is_there(cache)
    with pytest.raises(CorruptError, match=f"shard {SHARD}: {array} "):
        CacheReader(cache).load(SHARD)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("offset", [0, 11, -1, -9])
def test_a_flipped_bit_in_a_chunk_is_noticed_by_its_checksum(cache, array, offset):
    flip_a_bit(chunk_file(cache, array), offset)
    with pytest.raises(CorruptError, match=f"shard {SHARD}: {array} "):
        CacheReader(cache).load(SHARD)


@pytest.mark.parametrize("file", ["zarr.json", "stat/zarr.json", "hidden/zarr.json"])
@pytest.mark.parametrize("offset", [20, 150])
def test_a_flipped_bit_in_array_metadata_is_noticed(cache, file, offset):
    flip_a_bit(cache / GROUP / file, offset)
    with pytest.raises(CorruptError, match=rf"{GROUP}/{file} has SHA-256"):
        CacheReader(cache).load(SHARD)


@pytest.mark.parametrize(
    ("file", "offset"),
    [
        ("head.safetensors", 2),
        ("head.json", 0),
        ("tokenizer/vocab.txt", 3),
        ("cache.json", 30),
        ("cache.json", -40),
        ("manifest.json", -40),
    ],
)
def test_a_flipped_bit_beside_the_shards_is_noticed_when_opening(cache, file, offset):
    flip_a_bit(cache / file, offset)
    with pytest.raises(CorruptError, match=file):
        CacheReader(cache)


def test_a_changed_shard_manifest_is_noticed(cache):
    flip_a_bit(cache / "manifest" / f"{SHARD}.json", 40)
    with pytest.raises(CorruptError, match=f"manifest/{SHARD}.json is not as manifest.json says"):
        CacheReader(cache).load(SHARD)


def test_a_shard_of_another_place_is_noticed_by_its_attributes(cache):
    shutil.rmtree(cache / GROUP)
    shutil.copytree(cache / "shards" / "train-v0-000000.zarr", cache / GROUP)
    vouch_for_what_is_there(cache)
    with pytest.raises(CorruptError, match="attributes that differ"):
        CacheReader(cache).load(SHARD)


@pytest.mark.parametrize(
    ("array", "index", "value", "match"),
    [
        ("input_ids", 0, 49, "another digest than teacher_saw"),
        ("input_ids", 0, 50, "out of range"),
        ("masked", 0, 2, "out of range"),
        ("top_ids", (0, 0), 50, "out of range"),
        ("stat", (0, 0), np.inf, "out of range"),
        ("hidden_scale", (0, 0, 0), np.nan, "fill values"),
        ("hidden", (0, 0, 0), -128, "fill values"),
        ("row_token", 1, 0, "row_token does not ascend strictly"),
        ("row_token", -1, 10_000, "row_token does not ascend strictly"),
    ],
)
def test_values_that_no_writer_stores_are_noticed_though_every_checksum_is_right(cache, array, index, value, match):
    zarr.open_group(cache / GROUP, mode="r+")[array][index] = value
    vouch_for_what_is_there(cache)
    with pytest.raises(CorruptError, match=match):
        CacheReader(cache).load(SHARD)


def test_an_array_of_another_shape_is_noticed(cache):
    group = zarr.open_group(cache / GROUP, mode="r+")
    group["stat"].resize((1, 5))
    vouch_for_what_is_there(cache)
    with pytest.raises(CorruptError, match=r"stat is float32 \(1, 5\); expected float32"):
        CacheReader(cache).load(SHARD)


def test_a_manifest_that_leads_out_of_the_cache_is_refused():
    value = {"shard": str(SHARD), "files": {"../x": {"size": 0, "sha256": ""}}, "teacher_saw": "", "figures": {}}
    value |= {"counts": {"sequences": 1, "tokens": 1, "rows": 1, "masked": 0}, "computed_with": {}}
    with pytest.raises(CorruptError, match="outside the cache"):
        ShardManifest.from_bytes(SHARD, canonical_json(value))


@pytest.mark.parametrize(
    ("array", "index", "value", "match"),
    [
        ("top_count", 0, 0, "top_count holds fill values"),
        ("top_count", 0, 7, "top_count holds .* values out of range"),
        ("draw_ids", -1, 50, "draw_ids holds .* values out of range"),
        ("draw_weight", 3, 0, "draw_weight holds fill values"),
        ("draw_weight", 3, 10, "draw_weight holds .* values out of range"),
    ],
)
def test_values_that_no_writer_stores_in_ragged_arrays_are_noticed(ragged_cache, array, index, value, match):
    zarr.open_group(ragged_cache / GROUP, mode="r+")[array][index] = value
    vouch_for_what_is_there(ragged_cache)
    with pytest.raises(CorruptError, match=match):
        CacheReader(ragged_cache).load(SHARD)


@pytest.mark.parametrize(("array", "ids"), [("top_count", "top_ids"), ("draw_count", "draw_ids")])
def test_counts_that_do_not_sum_to_their_entries_are_noticed(ragged_cache, array, ids):
    counts = zarr.open_group(ragged_cache / GROUP, mode="r+")[array]
    counts[0] = int(counts[0]) + (1 if counts[0] < 6 else -1)
    vouch_for_what_is_there(ragged_cache)
    with pytest.raises(CorruptError, match=rf"{SHARD}: {array} sums to \d+; expected the length of {ids}, \d+"):
        CacheReader(ragged_cache).load(SHARD)


@pytest.mark.parametrize("array", ["top_count", "draw_count", "draw_ids", "draw_weight"])
def test_a_missing_chunk_of_a_ragged_array_is_noticed_though_every_manifest_is_right(ragged_cache, array):
    chunk_file(ragged_cache, array).unlink()
    vouch_for_what_is_there(ragged_cache)
    with pytest.raises(CorruptError, match=f"{array} is missing: it has no chunk file"):
        CacheReader(ragged_cache).load(SHARD)
    with pytest.raises(CorruptError, match=f"{array} holds fill values"):
        CacheReader(ragged_cache, engine="zarr").load(SHARD)


def test_a_manifest_that_does_not_count_the_entries_is_noticed(ragged_cache):
    path = ragged_cache / "manifest" / f"{SHARD}.json"
    value = json.loads(path.read_bytes())
    del value["counts"]["entries"]
    path.write_bytes(canonical_json(value) + b"\n")
    vouch_for_what_is_there(ragged_cache)
    with pytest.raises(CorruptError, match=f"{SHARD}: its manifest has no count of 'entries', which top_ids needs"):
        CacheReader(ragged_cache).load(SHARD)


def test_an_array_that_another_writer_coded_otherwise_is_read_all_the_same(cache):
    before = CacheReader(cache).load(SHARD).hidden["hidden"].copy()
    folder = cache / GROUP / "hidden"
    shutil.rmtree(folder)
    array = zarr.create_array(
        LocalStore(folder),
        shape=before.shape,
        dtype=before.dtype,
        chunks=(7, 1, 12),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=-128,
    )
    array[...] = before
    vouch_for_what_is_there(cache)
    for engine in ("own", "zarr", "zarrs"):
        np.testing.assert_array_equal(CacheReader(cache, engine=engine).load(SHARD).hidden["hidden"], before)
