"""A cache is readable by any Zarr v3 implementation, by FORMAT.md alone."""

import json
import struct

import numpy as np
import pytest
import tensorstore
import zarr

from storage import CacheReader
from storage.arrays import array_table
from tests.storage.build import LAYOUTS


def read_with_tensorstore(folder):
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensorstore_zarr_zarrs_and_our_reader_read_the_same(caches, name):
    reader = CacheReader(caches(name))
    for shard in reader.description.shard_ids():
        folder = reader.folder / "shards" / f"{shard}.zarr"
        group = zarr.open_group(folder, mode="r")
        arrays = reader.load(shard)
        with_zarrs = CacheReader(reader.folder, engine="zarrs").load(shard)
        theirs = {**vars(with_zarrs), **with_zarrs.logits, **with_zarrs.vectors}
        ours = {**vars(arrays), **arrays.logits, **arrays.vectors}
        for spec in array_table(reader.description, reader.description.splits[shard.split].layout):
            found = read_with_tensorstore(folder / spec.name)
            assert found.dtype == ours[spec.name].dtype == spec.dtype
            np.testing.assert_array_equal(found, ours[spec.name], err_msg=spec.name)
            np.testing.assert_array_equal(theirs[spec.name], ours[spec.name], err_msg=spec.name)
            np.testing.assert_array_equal(group[spec.name][...], ours[spec.name], err_msg=spec.name)


MASKED = {
    "sequence_offsets": ("uint32", "zstd", 4294967295),
    "original_ids": ("uint16", "zstd", 65535),
    "input_ids": ("uint16", "zstd", 65535),
    "masked": ("uint8", "zstd", 255),
    "row_token": ("uint32", "zstd", 4294967295),
    "stat": ("float32", "blosc", "NaN"),
    "top_ids": ("uint16", "blosc", 65535),
    "top_gap": ("uint8", "zstd", 255),
    "hidden": ("int8", "zstd", -128),
    "hidden_scale": ("float16", "blosc", "NaN"),
}
DRAWN = {
    "draw_count": ("uint8", "zstd", 0),
    "draw_ids": ("uint16", "blosc", 65535),
    "draw_weight": ("uint8", "zstd", 0),
}


ATTENTION = {
    name: line
    for part in ("queries", "keys", "values")
    for name, line in {part: ("int8", "zstd", -128), f"{part}_scale": ("float16", "blosc", "NaN")}.items()
}


def without(table, *names):
    return {name: line for name, line in table.items() if name not in names}


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("masked", MASKED),
        (
            "threshold",
            {
                **without(MASKED, "row_token", "hidden_scale"),
                "top_count": ("uint8", "zstd", 0),
                "hidden": ("uint16", "zstd", 65535),
            },
        ),
        (
            "tail",
            {
                **without(MASKED, "top_gap"),
                **DRAWN,
                "top_count": ("uint8", "zstd", 0),
                "top_logits": ("float16", "zstd", "NaN"),
            },
        ),
        ("attention", {**without(MASKED, "row_token"), **ATTENTION}),
        ("draws_only", {**without(MASKED, "row_token", "top_ids", "top_gap", "hidden", "hidden_scale"), **DRAWN}),
    ],
)
def test_arrays_are_sharded_with_the_codecs_and_fill_values_of_the_format_document(caches, cache, expected):
    folder = caches(cache) / "shards" / "train-v0-000000.zarr"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(expected)
    for name, (dtype, compressor, fill_value) in expected.items():
        metadata = json.loads((folder / name / "zarr.json").read_bytes())
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]
        assert sharding["name"] == "sharding_indexed"
        assert [codec["name"] for codec in inner["codecs"]] == ["bytes", compressor, "crc32c"]
        assert [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        assert (metadata["data_type"], metadata["fill_value"]) == (dtype, fill_value)
        if compressor == "blosc":
            settings = inner["codecs"][1]["configuration"]
            assert (settings["cname"], settings["clevel"], settings["shuffle"]) == ("zstd", 1, "shuffle")
            assert settings["typesize"] == np.dtype(dtype).itemsize


def test_json_files_are_canonical_and_end_with_a_newline(caches):
    folder = caches("masked")
    for path in [folder / "cache.json", folder / "manifest.json", *(folder / "manifest").iterdir()]:
        value = json.loads(path.read_bytes())
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
        assert path.read_text(encoding="utf-8") == text


def test_ragged_rows_and_bfloat16_are_decoded_from_the_arrays_as_the_format_document_says(caches):
    """Without our code: plain loops over what tensorstore reads."""
    reader = CacheReader(caches("threshold"))
    shard = reader.shards("train")[0]
    layout = reader.description.splits["train"].layout
    folder = reader.folder / "shards" / f"{shard}.zarr"
    names = ("stat", "top_count", "top_gap", "hidden")
    stat, count, gaps, hidden = (read_with_tensorstore(folder / name) for name in names)
    logits, entries = [], iter(gaps.tolist())
    for row, kept in enumerate(count.tolist()):
        reached = 0
        for _ in range(kept):
            reached += next(entries)
            logits.append(float(stat[row, 0]) - layout.grid_step * reached)
    arrays = reader.load(shard)
    np.testing.assert_allclose(arrays.decoded_logits(layout), logits, rtol=1e-6)
    states = [struct.unpack("<f", struct.pack("<HH", 0, bits))[0] for bits in hidden.reshape(-1).tolist()]
    assert arrays.decoded_hidden(layout).reshape(-1).tolist() == states
