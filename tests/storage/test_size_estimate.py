"""What shards cost, against shards that the writer of the cache wrote."""

import dataclasses

import numpy as np
import pytest

from storage import CacheReader, ShardId
from storage.manifest import MANIFEST_FILE, manifest_file
from storage.size_estimate import bytes_beside_shards, merged, recoded, shard_cost
from tests.storage.build import BALANCED, DRAWS, EXACT, LAYOUTS, LOSSLESS, build_cache, make_description, make_targets


def encoded(description, shard):
    targets = make_targets(description, shard)
    return targets.encode(description, description.splits[shard.split].layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_cost_of_the_very_shard_that_was_weighed_is_its_size(tmp_path, layout):
    description, shard = make_description(layout, shards=1, variants=1), ShardId("train", 0, 0)
    arrays = encoded(description, shard)
    (tmp_path / "scratch").mkdir()
    cost = shard_cost(tmp_path / "scratch", description, "train", layout, arrays, {})
    assert list((tmp_path / "scratch").iterdir()) == []
    counts = {
        "sequences": len(arrays["sequence_offsets"]) - 1,
        "tokens": len(arrays["masked"]),
        "rows": len(arrays.get("stat", arrays["masked"])),  # of a task's cache every token is a row
    }

    cache = build_cache(tmp_path / "cache", description)
    reader = CacheReader(cache)
    files = {name: record.size for name, record in reader.files.items() if f"{shard}" in name}
    own_manifest = (cache / manifest_file(shard)).stat().st_size
    assert sum(cost.by_array(counts).values()) == pytest.approx(
        sum(size for name, size in files.items() if "/c/" in name), abs=2
    )
    others = sum(size for name, size in files.items() if "/c/" not in name)
    lines = sum(len(f'"{name}":{{"sha256":"{"0" * 64}","size":{size}}},') for name, size in files.items())
    assert own_manifest in files.values()
    assert cost.fixed_bytes == pytest.approx(
        others + lines, abs=300
    )  # the shard's manifest here says what it was made with
    assert cost.read_seconds_per_row > 0


def test_what_a_cache_holds_once_is_counted_with_its_lines_in_the_manifest(tmp_path):
    description = make_description(shards=1)
    cache = build_cache(tmp_path / "cache", description)
    head = {name: (cache / name).read_bytes() for name in ("head.json", "head.safetensors")}
    files = CacheReader(cache).files
    of_shards = sum(record.size for name, record in files.items() if name.startswith(("shards/", "manifest/")))
    lines_of_shards = sum(
        len(f'"{name}":{{"sha256":"{"0" * 64}","size":{record.size}}},')
        for name, record in files.items()
        if name.startswith(("shards/", "manifest/"))
    )
    whole = sum(record.size for record in files.values()) + (cache / MANIFEST_FILE).stat().st_size
    found = bytes_beside_shards(description, head, cache / "tokenizer")
    assert found == pytest.approx(whole - of_shards - lines_of_shards, abs=300)  # the counts of the splits


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_merged_shards_hold_the_sequences_of_one_after_those_of_the_other(layout):
    description = make_description(layout, shards=2, variants=1)
    parts = [encoded(description, ShardId("train", 0, number)) for number in (0, 1)]
    whole = merged(parts)
    assert whole.keys() == parts[0].keys()
    assert {name: array.dtype for name, array in whole.items()} == {
        name: array.dtype for name, array in parts[0].items()
    }
    tokens, sequences = len(parts[0]["masked"]), len(parts[0]["sequence_offsets"]) - 1
    assert np.array_equal(whole["sequence_offsets"][sequences:] - tokens, parts[1]["sequence_offsets"])
    if "row_token" in whole:
        rows = len(parts[0]["row_token"])
        assert np.array_equal(whole["row_token"][rows:] - tokens, parts[1]["row_token"])
    for name in set(whole) - {"sequence_offsets", "row_token"}:
        assert np.array_equal(whole[name], np.concatenate([part[name] for part in parts]))


@pytest.mark.parametrize("layout", [EXACT, BALANCED], ids=["exact", "balanced"])
def test_recoded_arrays_are_those_of_targets_coded_at_once(layout):
    description, shard = make_description(layout, shards=1), ShardId("train", 0, 0)
    more = make_description(LOSSLESS, shards=1)
    found = recoded(encoded(more, shard), more.temperatures, description, layout)
    expected = encoded(description, shard)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array), name


def test_recoded_statistics_are_those_of_the_temperatures_that_are_kept():
    description = make_description(DRAWS, shards=1)
    arrays = encoded(description, ShardId("train", 0, 0))
    fewer = dataclasses.replace(description, temperatures=(1.0,))
    found = recoded(
        {**arrays, "top_logits": np.zeros(arrays["top_ids"].shape, np.float32)}, description.temperatures, fewer, DRAWS
    )
    assert np.array_equal(found["stat"], arrays["stat"][:, :3])
