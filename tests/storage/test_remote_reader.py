"""Reading a cache at a URL: the same values as from a folder, in bounded room, and nothing wrong without a word."""

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, Wanted
from storage import CacheError, CacheReader, CorruptError, IncompleteError, ShardId
from storage.remote import RemoteReader, open_cache, push
from tests.storage.build import MASKED, build_cache, make_description
from tests.storage.damage import flip_a_bit
from tests.storage.fault_proxy import Fault
from tests.storage.remote_roots import opened

SHARDS = 6


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A cache of several shards in a folder, never changed."""
    return CacheReader(build_cache(tmp_path_factory.mktemp("local"), make_description(MASKED, shards=SHARDS)))


@pytest.fixture
def push_to(local, tmp_path):
    """A function that pushes the cache to a root and gives the cache's URL."""

    def push_there(url):
        return f"{url}/{push(local.folder, opened(url), tmp_path / 'push').fingerprint}"

    return push_there


@pytest.fixture
def shard_bytes(local):
    """Of the largest shard."""
    return max(size_of(local.folder / "shards" / f"{shard}.zarr") for shard in local.description.shard_ids())


def size_of(folder):
    """Bytes below a folder, while threads may be removing some."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


def resident(reader):
    """Names of the shards in the local folder, whole ones only."""
    return {path.name.removesuffix(".zarr") for path in (reader.folder / "shards").glob("[!.]*")}


def train(number):
    return ShardId("train", 0, number)


def assert_same(found, expected):
    for name in ("sequence_ids", "sequence_offsets", "original_ids", "input_ids", "masked", "row_token", "stat"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    for name, array in {**expected.hidden, **expected.logits}.items():
        np.testing.assert_array_equal({**found.hidden, **found.logits}[name], array, err_msg=name)


def test_every_shard_reads_as_from_a_folder_in_less_room_than_the_cache_takes(
    url, push_to, local, shard_bytes, tmp_path
):
    limit = 2 * shard_bytes
    reader = open_cache(push_to(url), local=tmp_path / "shards", limit_bytes=limit)
    assert (reader.description, reader.root_digest, reader.counts) == (
        local.description, local.root_digest, local.counts,
    )  # fmt: skip
    for _ in range(2):
        for shard in local.description.shard_ids():
            assert_same(reader.load(shard), local.load(shard))
            assert size_of(reader.folder / "shards") <= limit
    assert reader.shard_counts(train(0)) == local.shard_counts(train(0))
    assert (reader.folder / "head.json").read_bytes() == (local.folder / "head.json").read_bytes()
    reader.close()


def test_a_folder_is_read_as_it_is(local):
    assert type(open_cache(local.folder)) is type(open_cache(str(local.folder))) is CacheReader


def test_the_shards_that_were_used_last_stay(memory, push_to, shard_bytes, tmp_path):
    reader = RemoteReader(push_to(memory), tmp_path, limit_bytes=3 * shard_bytes, prefetch=0)
    for number in (0, 4, 2, 0, 5):
        reader.load(train(number))
    assert str(train(0)) in resident(reader)
    assert str(train(5)) in resident(reader)
    assert str(train(4)) not in resident(reader)


def test_a_shard_in_use_is_not_removed(memory, push_to, shard_bytes, tmp_path):
    reader = RemoteReader(push_to(memory), tmp_path, limit_bytes=2 * shard_bytes, prefetch=0)
    with reader._local.held(train(0)):
        for number in range(1, SHARDS):
            reader.load(train(number))
            assert str(train(0)) in resident(reader)
    for number in (1, 2):
        reader.load(train(number))
    assert str(train(0)) not in resident(reader)


def test_a_shard_that_finds_no_room_waits_until_another_is_let_go(memory, push_to, local, shard_bytes, tmp_path):
    reader = RemoteReader(push_to(memory), tmp_path, limit_bytes=shard_bytes, prefetch=0)
    with ThreadPoolExecutor(1) as pool:
        with reader._local.held(train(0)):
            waiting = pool.submit(reader.load, train(1))
            assert not threading.Event().wait(0.1)
            assert not waiting.done()
        assert_same(waiting.result(), local.load(train(1)))


def test_many_threads_and_two_readers_share_one_folder(memory, push_to, local, shard_bytes, tmp_path):
    url, limit = push_to(memory), 3 * shard_bytes
    readers = [RemoteReader(url, tmp_path, limit_bytes=limit) for _ in range(2)]
    order = np.random.default_rng(0).integers(0, SHARDS, 60)

    def load(index):
        number = int(order[index])
        assert_same(readers[index % 2].load(train(number)), local.load(train(number)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(len(order))))
    for reader in readers:
        reader.close()
    assert size_of(readers[0].folder / "shards") <= limit


def test_what_was_fetched_ahead_is_not_fetched_again(s3, push_to, shard_bytes, tmp_path):
    url, proxy = s3
    reader = RemoteReader(push_to(url), tmp_path, limit_bytes=4 * shard_bytes)
    reader.prefetch([train(3), train(1), train(5)])
    reader.close()  # waits for the two that it was opened for
    assert resident(reader) == {str(train(3)), str(train(1))}
    proxy.reset()
    reader.load(train(3))
    reader.load(train(1))
    assert proxy.asked("GET") == 0


def test_shards_that_are_loaded_in_their_order_are_fetched_ahead_others_not(memory, push_to, shard_bytes, tmp_path):
    url = push_to(memory)
    shuffled = RemoteReader(url, tmp_path / "shuffled", limit_bytes=4 * shard_bytes)
    for number in (4, 0, 2):
        shuffled.load(train(number))
    shuffled.close()
    assert resident(shuffled) == {str(train(number)) for number in (4, 0, 2)}
    ordered = RemoteReader(url, tmp_path / "ordered", limit_bytes=4 * shard_bytes)
    ordered.load(train(0))
    ordered.load(train(1))
    ordered._pool.shutdown(wait=True)
    assert resident(ordered) == {str(train(number)) for number in range(4)}


def test_the_next_run_finds_the_shards_again(s3, push_to, local, shard_bytes, tmp_path):
    url, proxy = s3
    where = push_to(url)
    RemoteReader(where, tmp_path, limit_bytes=2 * shard_bytes).load(train(0))
    proxy.reset()
    assert_same(RemoteReader(where, tmp_path, limit_bytes=2 * shard_bytes).load(train(0)), local.load(train(0)))
    assert proxy.asked("GET") == 2  # cache.json and manifest.json


def test_a_reader_survives_pickling(memory, push_to, local, shard_bytes, tmp_path):
    reader = pickle.loads(pickle.dumps(RemoteReader(push_to(memory), tmp_path, limit_bytes=2 * shard_bytes)))
    assert_same(reader.load(train(2)), local.load(train(2)))


@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_a_damaged_object_is_refused_with_shard_file_and_url(kind, s3, push_to, tmp_path):
    url, proxy = s3
    where = push_to(url)
    proxy.faults.append(Fault(kind, "GET", "hidden/c", times=1000))
    reader = RemoteReader(where, tmp_path)
    with pytest.raises(CorruptError) as refused:
        reader.load(train(1))
    for part in (
        f"shard {train(1)}: {where}/shards/{train(1)}.zarr/hidden/c", "expected", "pipeline cache push URL --verify",
        "pipeline cache-teacher --root URL --verify",
    ):  # fmt: skip
        assert part in str(refused.value)
    assert resident(reader) == set()
    proxy.reset()
    reader.load(train(1))


def test_a_dropped_connection_is_survived(s3, push_to, local, tmp_path):
    url, proxy = s3
    where = push_to(url)
    proxy.faults.append(Fault("drop", "GET", "hidden/c", times=2))
    assert_same(RemoteReader(where, tmp_path).load(train(1)), local.load(train(1)))


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_local_copy_that_was_damaged_is_fetched_again(damage, memory, push_to, local, tmp_path):
    url = push_to(memory)
    reader = RemoteReader(url, tmp_path)
    reader.load(train(1))
    (chunk,) = [path for path in (reader.folder / f"shards/{train(1)}.zarr/hidden/c").rglob("*") if path.is_file()]
    if damage == "flip":
        flip_a_bit(chunk, 20)
    else:
        chunk.unlink()
    for again in (reader, RemoteReader(url, tmp_path)):
        assert_same(again.load(train(1)), local.load(train(1)))


def test_an_unfinished_cache_is_refused(memory, push_to, tmp_path):
    url = push_to(memory)
    opened(url).remove("manifest.json")
    with pytest.raises(IncompleteError, match=r"has no manifest\.json.*pipeline cache push"):
        open_cache(url, local=tmp_path)


def test_a_bound_that_no_shard_fits_into_is_refused(memory, push_to, shard_bytes, tmp_path):
    with pytest.raises(CacheError, match=f"may hold 1,000 bytes, and shard .* alone has {shard_bytes:,}"):
        RemoteReader(push_to(memory), tmp_path, limit_bytes=1000)


def test_a_training_sees_the_same_batches_from_a_url_as_from_a_folder(s3, push_to, local, shard_bytes, tmp_path):
    def batches(reader):
        split = reader.description.splits["train"]
        plan = BatchPlan(tuple(count for _, count in split.shards), batch_size=4, seed=0, variants=1)
        wanted = Wanted(hidden=True, logits=True)
        steps = 2 * plan.steps_per_epoch
        return PlannedBatches(reader, plan, wanted=wanted, micro_batch_size=4, first_step=0, last_step=steps)

    remote = open_cache(push_to(s3[0]), local=tmp_path, limit_bytes=2 * shard_bytes)
    count = 0
    for found, expected in zip(batches(remote), batches(local), strict=True):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name].numpy(), tensor.numpy())
        count += 1
    assert count > SHARDS


def test_what_a_killed_reader_left_takes_no_room(memory, push_to, local, shard_bytes, tmp_path):
    url = push_to(memory)
    reader = RemoteReader(url, tmp_path, limit_bytes=shard_bytes, prefetch=0)
    reader.load(train(0))
    shards = reader.folder / "shards"
    (shards / f"{train(0)}.zarr").rename(shards / f".tmp-discarded-{train(0)}.zarr")  # killed while it removed one
    (shards / f".tmp-{train(1)}.zarr").mkdir()  # killed while it fetched one
    assert_same(RemoteReader(url, tmp_path, limit_bytes=shard_bytes).load(train(2)), local.load(train(2)))
    assert [path.name for path in shards.iterdir()] == [f"{train(2)}.zarr"]
