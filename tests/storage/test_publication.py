"""Shards that are published by others than the holder of the lock: also twice, at once, too late."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from storage import CacheReader, CacheWork, IncompleteError, ShardId, ShardPublisher, verify_cache
from storage.errors import CorruptError
from tests.storage.build import add_files, build_cache, make_description, publish

SHARD = ShardId("train", 0, 1)


@pytest.fixture
def description():
    return make_description(shards=2)


@pytest.fixture
def work(tmp_path, description):
    with CacheWork.open(tmp_path / "work", description) as opened:
        yield opened


@pytest.fixture
def publisher(work):
    return ShardPublisher(work.root, work.description)


def inode(work, shard=SHARD):
    return (work.folder / "shards" / f"{shard}.zarr").stat().st_ino


def test_what_others_published_is_taken_in_and_gives_the_same_cache(tmp_path, work, publisher, description):
    for shard in work.missing():
        assert publisher.find(shard) is None
        publish(publisher, shard)
        assert work.take_in(shard) == publisher.find(shard)
    add_files(work, tmp_path)
    digest = work.finish(tmp_path / "current")
    assert digest == CacheReader(build_cache(tmp_path / "alone", description)).root_digest


def test_a_shard_that_is_there_and_whole_is_left_as_it_is(work, publisher):
    publish(publisher, SHARD)
    before = inode(work)
    publish(ShardPublisher(work.root, work.description), SHARD)
    assert inode(work) == before
    assert not list(work.root.rglob(".tmp-*"))


@pytest.mark.parametrize("lost", ["manifest/{}.json", "shards/{}.zarr/zarr.json", "shards/{}.zarr/hidden/c/0/0/0"])
def test_half_a_shard_is_replaced(work, publisher, lost):
    publish(publisher, SHARD)
    (work.folder / lost.format(SHARD)).unlink()
    assert publisher.find(SHARD) is None
    with pytest.raises(CorruptError, match=f"shard {SHARD} was published and is not whole"):
        work.take_in(SHARD)
    publish(publisher, SHARD)
    assert work.take_in(SHARD)
    assert SHARD not in work.missing()


def test_what_a_killed_process_left_is_swept_when_the_cache_is_finished(tmp_path, work, publisher):
    for shard in work.missing():
        publish(publisher, shard)
        work.take_in(shard)
    (work.root / f".tmp-{work.description.fingerprint}-{SHARD}-7-ab.zarr").mkdir()
    add_files(work, tmp_path)
    work.finish(tmp_path / "current")
    assert not list(tmp_path.rglob(".tmp-*"))


def test_many_that_publish_the_same_shards_at_the_same_time_leave_each_once_and_whole(tmp_path, work, description):
    shards = description.shard_ids() * 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda shard: publish(ShardPublisher(work.root, description), shard), shards))
    assert work.missing() == []
    add_files(work, tmp_path)
    work.finish(tmp_path / "current")
    verify_cache(tmp_path / "current", deep=True)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_who_comes_too_late_changes_nothing_in_the_finished_cache(tmp_path, description):
    cache = build_cache(tmp_path, description)
    before = sorted(cache.rglob("*")), CacheReader(cache).root_digest
    with pytest.raises(IncompleteError, match="comes too late; nothing was changed"):
        publish(ShardPublisher(tmp_path / "work", description), SHARD)
    assert (sorted(cache.rglob("*")), verify_cache(cache).root_digest) == before
    assert {path.suffix for path in (tmp_path / "work").iterdir()} == {".lock"}


def test_a_sweep_does_not_stumble_over_a_publisher_that_is_still_writing(tmp_path, work, publisher, monkeypatch):
    swept = []
    write = ShardPublisher._write_temporary

    def write_and_be_swept(self, *arguments):
        found = write(self, *arguments)
        if not swept:  # as a coordinator does that starts now
            work._sweep()
            swept.append(found[0])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ShardPublisher, "_write_temporary", write_and_be_swept)
        with pytest.raises(Exception, match="could not be written"):
            publish(publisher, SHARD)
    assert publisher.find(SHARD) is None
    publish(publisher, SHARD)
    assert work.take_in(SHARD)
