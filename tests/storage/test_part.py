"""Jobs that do a part of a cache each, without knowing of one another."""

from itertools import chain

import pytest

from storage import CacheReader, CacheWork, LockedError, Part
from tests.storage.build import add_files, build_cache, make_description, publish


@pytest.fixture
def description():
    return make_description(shards=3)


def test_parts_cover_every_shard_once_and_spread_the_splits(description):
    shards = description.shard_ids()
    for parts in range(1, len(shards) + 3):
        dealt = [Part(number + 1, parts).of_all(shards) for number in range(parts)]
        assert sorted(chain.from_iterable(dealt)) == sorted(shards)
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "1", "1/2/3", "-1/2", "a/b", " 1/2", ""])
def test_what_is_no_part_is_refused_with_what_one_looks_like(text):
    with pytest.raises(ValueError, match=r"expected I/N with 1 <= I <= N, e.g. 3/8"):
        Part.parse(text)
    assert Part.parse("2/3") == Part(2, 3)


def test_parts_that_are_done_side_by_side_make_the_cache_once_it_is_finished(tmp_path, description):
    root = tmp_path / "work"
    with (
        CacheWork.open(root, description, Part(1, 2)) as one,
        CacheWork.open(root, description, Part(2, 2)) as other,
    ):
        for work in (one, other):
            for shard in work.missing():
                publish(work, shard)
            work.finish_part()
            assert work.missing() == []
        assert not (one.folder / "manifest.json").exists()
    with CacheWork.open(root, description) as work:
        assert work.missing() == []
        add_files(work, tmp_path)
        digest = work.finish(tmp_path / "current")
    assert digest == CacheReader(build_cache(tmp_path / "alone", description)).root_digest


def test_a_coordinator_and_jobs_of_parts_keep_each_other_out(tmp_path, description):
    with (
        CacheWork.open(tmp_path, description, Part(1, 2)),
        pytest.raises(LockedError, match=r"jobs of `pipeline cache-teacher --shards` work on the cache"),
        CacheWork.open(tmp_path, description),
    ):
        pass
    with (
        CacheWork.open(tmp_path, description),
        pytest.raises(LockedError, match="another process works on the cache"),
        CacheWork.open(tmp_path, description, Part(1, 2)),
    ):
        pass


def test_two_jobs_of_the_same_part_keep_each_other_out(tmp_path, description):
    with (
        CacheWork.open(tmp_path, description, Part(1, 2)),
        pytest.raises(LockedError, match=r"another process works on part 1/2 of the cache"),
        CacheWork.open(tmp_path, description, Part(1, 2)),
    ):
        pass


def test_a_job_of_a_part_sweeps_nothing_that_another_one_writes(tmp_path, description):
    temporary = tmp_path / f".tmp-{description.fingerprint}-train-v0-000000-7-ab.zarr"
    temporary.mkdir()
    with CacheWork.open(tmp_path, description, Part(1, 2)):
        assert temporary.exists()
    with CacheWork.open(tmp_path, description):
        assert not temporary.exists()
