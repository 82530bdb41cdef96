import json

import pytest

from stages import cache_teacher
from stages.metrics_log import MetricsLog
from storage import CacheReader, Part, ShardId
from storage.manifest import ShardManifest
from tests.pipeline.clock import Clock

SHARD = ShardId("train", 0, 3)


def manifest(**figures):
    return ShardManifest(shard=SHARD, counts={}, files={}, teacher_saw="", computed_with={}, figures=figures)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_speed_and_the_time_left_are_those_of_this_start(tmp_path):
    clock = Clock()
    log = MetricsLog(tmp_path / "metrics.jsonl", shards=4, tokens=1000, clock=clock)
    clock.now += 2.0
    log.add(SHARD, 200, manifest())
    clock.now += 2.0
    log.add(SHARD, 200, manifest())
    last = lines(tmp_path / "metrics.jsonl")[-1]
    assert (last["tokens_per_second"], last["seconds_left"]) == (100.0, 6.0)
    assert (last["shards_done"], last["tokens_done"], log.figures()["shards"]) == (2, 400, "2 of 4")


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next_one(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"shard": "a"}\n{"sha')
    MetricsLog(file, shards=1, tokens=10).add(SHARD, 10, manifest())
    first, torn, last = file.read_text().splitlines()
    assert json.loads(first) == {"shard": "a"}
    assert json.loads(last)["shard"] == str(SHARD)
    with pytest.raises(json.JSONDecodeError):
        json.loads(torn)


def test_the_retained_mass_is_the_mean_over_masked_and_unmasked_positions(tmp_path):
    kinds = {
        "masked": {"positions": 1, "entropy": {"1.0": {"mean": 1.0}}, "retained_mass": {"1.0": {"mean": 0.6}}},
        "unmasked": {"positions": 3, "entropy": {"1.0": {"mean": 1.0}}, "retained_mass": {"1.0": {"mean": 1.0}}},
    }
    MetricsLog(tmp_path / "metrics.jsonl", shards=1, tokens=4).add(SHARD, 4, manifest(**kinds))
    assert lines(tmp_path / "metrics.jsonl")[0]["retained_mass"] == {"1.0": pytest.approx(0.9)}


def test_the_stage_logs_every_shard_once_with_its_bytes(make_project):
    project = make_project()
    project.run(cache_teacher)
    found = lines(project.artefacts.cache_metrics())
    reader = CacheReader(project.artefacts.cache)
    shards = reader.description.shard_ids()
    assert sorted(line["shard"] for line in found) == sorted(map(str, shards))
    assert found[-1]["seconds_left"] == 0
    files = [name for name in reader.files if name.startswith(("shards/", "manifest/"))]
    assert sum(line["bytes"] for line in found) == sum(reader.files[name].size for name in files)


def test_each_part_has_a_log_of_its_own(make_project):
    project = make_project()
    assert project.artefacts.cache_metrics(Part(1, 4)).name == "metrics-1-of-4.jsonl"
