import json

from storage import CacheReader, ShardId, canonical_json
from storage.cache_info import cache_info
from tests.storage.damage import SHARD


def test_info_adds_up_what_the_manifests_record(caches):
    info = cache_info(caches("masked"))
    reader = CacheReader(caches("masked"))
    assert (info["fingerprint"], info["root_digest"]) == (reader.description.fingerprint, reader.root_digest)
    train = info["splits"]["train"]
    assert train["variants"]["0"] == reader.counts["train"]
    on_disk = [path for path in (caches("masked") / "shards").glob("train-*/**/*") if path.is_file()]
    assert train["bytes"] == sum(path.stat().st_size for path in on_disk)
    assert train["bytes_per_position"]["hidden"] > train["bytes_per_position"]["hidden_scale"] > 0
    assert info["computed_with"] == [{"device": "cpu", "shards": 3}]
    assert "masked" not in train  # the figures of a cache written before there were any


def test_info_weighs_the_figures_of_shards_by_their_positions(cache):
    for shard, positions, mean in ((ShardId("train", 0, 0), 10, 1.0), (SHARD, 30, 2.0)):
        path = cache / "manifest" / f"{shard}.json"
        value = json.loads(path.read_bytes())
        value["figures"] = {"masked": {"positions": positions, "entropy": {"1.0": {"mean": mean, "counts": []}}}}
        path.write_bytes(canonical_json(value) + b"\n")
    assert cache_info(cache)["splits"]["train"]["masked"] == {"positions": 40, "entropy": {"1.0": 1.75}}
