"""The process that decodes shards ahead."""

import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from storage import CacheError, CacheReader, CorruptError, ShardLoader, SharedBy, decoded_bytes
from storage.errors import RemoteError
from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.damage import flip_a_bit

SHARDS = 6


@pytest.fixture(scope="module", params=["balanced", "tail", "draws", "hidden_only"])
def reader(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return CacheReader(build_cache(folder, make_description(LAYOUTS[request.param], shards=SHARDS)))


@pytest.fixture
def cache(tmp_path):
    return build_cache(tmp_path, make_description(LAYOUTS["masked"], shards=SHARDS))


def loader_of(reader, order, slots):
    size = decoded_bytes(reader, reader.shards("train"))
    return ShardLoader(reader, order, slots=slots, slot_bytes=size)


def assert_same(found, expected):
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, dict):
            for key, array in value.items():
                np.testing.assert_array_equal(other[key], array)
        elif value is not None:
            np.testing.assert_array_equal(other, value)


def child_of(loader):
    return psutil.Process(loader._process.pid)


def test_what_it_gives_is_what_the_reader_reads(reader):
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=2) as loader:
        for window, shard in enumerate(shards):
            assert_same(loader.get(window, shard), reader.load(shard))


def test_shards_of_a_window_are_there_together_and_windows_may_share_shards(reader):
    shards = reader.shards("train")
    windows = [shards[:3], shards[2:5], shards[:3], shards[3:]]
    order = [(window, shard) for window, members in enumerate(windows) for shard in members]
    for slots in (3, 4, 6):
        with loader_of(reader, order, slots) as loader:
            for window, members in enumerate(windows):
                held = [(shard, loader.get(window, shard)) for shard in reversed(members)]
                for shard, arrays in held:
                    assert_same(arrays, reader.load(shard))


def test_an_endless_order_is_read_no_further_than_there_are_slots(reader):
    shards, taken = reader.shards("train"), []

    def order():
        for window in itertools.count():
            taken.append(window)
            yield window, shards[window % SHARDS]

    with loader_of(reader, order(), slots=3) as loader:
        for window in range(20):
            loader.get(window, shards[window % SHARDS])
            assert len(taken) == window + 3


def test_a_shard_that_comes_again_while_it_is_in_memory_is_not_read_again(cache):
    reader = CacheReader(cache)
    first, second, *_ = reader.shards("train")
    order = [(window, shard) for window in range(5) for shard in (first, second)]
    with loader_of(reader, order, slots=4) as loader:
        loader.get(0, first)
        loader.get(0, second)
        for path in (cache / "shards").rglob("*"):
            if path.is_file():
                path.unlink()
        for window in range(1, 5):
            loader.get(window, second)
            loader.get(window, first)


def test_the_arrays_cannot_be_written_to(reader):
    shard = reader.shards("train")[0]
    with loader_of(reader, [(0, shard)], slots=1) as loader, pytest.raises(ValueError, match="read-only"):
        loader.get(0, shard).stat[0] = 1


def test_a_shard_that_the_order_does_not_have_is_refused(reader):
    first, second, *_ = reader.shards("train")
    with loader_of(reader, [(0, first)], slots=2) as loader, pytest.raises(ValueError, match=f"{second} of window 0"):
        loader.get(0, second)


def test_a_damaged_shard_is_named_where_it_is_used_and_hides_no_other(cache):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    flip_a_bit(cache / f"shards/{shards[1]}.zarr/hidden/c/0/0/0", 20)
    with loader_of(reader, [(0, shard) for shard in shards], slots=SHARDS) as loader:
        loader.get(0, shards[0])
        for _ in range(2):
            with pytest.raises(CorruptError, match=f"shard {shards[1]}: hidden .* crc32c"):
                loader.get(0, shards[1])
        loader.get(0, shards[2])


def test_a_slot_that_held_a_damaged_shard_serves_the_next_one(cache):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    flip_a_bit(cache / f"shards/{shards[0]}.zarr/hidden/c/0/0/0", 20)
    with loader_of(reader, list(enumerate(shards)), slots=1) as loader:
        with pytest.raises(CorruptError):
            loader.get(0, shards[0])
        assert_same(loader.get(1, shards[1]), reader.load(shards[1]))


def test_a_process_that_was_killed_is_an_error_that_names_the_shard(cache):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=1) as loader:
        loader.get(0, shards[0])
        os.kill(loader._process.pid, signal.SIGKILL)
        with pytest.raises(CacheError, match=f"{shards[1]}: the process that reads shards has ended .SIGKILL.*memory"):
            loader.get(1, shards[1])


class Unopenable(CacheReader):
    """Stands for a remote root that does not answer when the process opens it."""

    def __reduce__(self):
        return open_in_vain, ()


def open_in_vain():
    raise RemoteError("s3://bucket/caches does not answer")


def test_a_reader_that_the_process_cannot_open_is_the_error_of_every_shard(cache):
    reader = Unopenable(cache)
    shards = reader.shards("train")
    with loader_of(reader, [(0, shard) for shard in shards], slots=SHARDS) as loader:
        for shard in shards[:2]:
            with pytest.raises(RemoteError, match="s3://bucket/caches does not answer"):
                loader.get(0, shard)


def test_it_goes_on_when_the_whole_process_group_is_asked_to_stop(cache):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=1) as loader:
        loader.get(0, shards[0])  # from here on it no longer starts
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(loader._process.pid, number)
        assert_same(loader.get(1, shards[1]), reader.load(shards[1]))


def test_a_signal_to_the_whole_group_while_it_starts_does_not_end_it(cache):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=1) as loader:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(loader.process_id, number)
        assert_same(loader.get(0, shards[0]), reader.load(shards[0]))
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_what_the_system_refuses_is_told_as_it_is(cache):
    reader = Unreadable(cache)
    shards = reader.shards("train")
    with (
        loader_of(reader, [(0, shards[0])], slots=1) as loader,
        pytest.raises(CacheError, match=f"shard {shards[0]} could not be read .OSError: .*No space left.*run the same"),
    ):
        loader.get(0, shards[0])


class Unreadable(CacheReader):
    """Stands for a local folder of shards on a full disk."""

    def load(self, shard, allocate=None, **targets):  # noqa: ARG002
        raise OSError(28, "No space left on device")


class Twice(CacheReader):
    """Reads a shard a second time, as a reader at a remote root does where its local copy was damaged meanwhile."""

    def load(self, shard, allocate, **targets):
        super().load(shard, allocate, **targets)
        return super().load(shard, allocate, **targets)


def test_a_second_attempt_at_a_shard_lands_where_the_first_one_did(cache):
    reader = Twice(cache)
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=2) as loader:
        for window, shard in enumerate(shards):
            assert_same(loader.get(window, shard), CacheReader(cache).load(shard))


def test_closing_does_not_wait_for_a_process_that_was_forked_meanwhile(cache):
    reader = CacheReader(cache)
    loader = loader_of(reader, [(0, reader.shards("train")[0])], slots=1)
    held = subprocess.Popen(  # holds the connection open, as a forked process would
        [sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[loader._connection.fileno()]
    )
    process = child_of(loader)
    process_ended = loader._process
    loader.close()
    assert not process.is_running()
    assert process_ended.returncode == 0
    held.kill()
    held.wait()


def test_closing_ends_the_process_and_twice_is_once(reader):
    loader = loader_of(reader, [(0, shard) for shard in reader.shards("train")], slots=SHARDS)
    process = child_of(loader)
    loader.close()
    loader.close()
    assert not process.is_running()


def test_one_that_nobody_closed_ends_without_a_warning(reader):
    loader = loader_of(reader, [(0, shard) for shard in reader.shards("train")], slots=SHARDS)
    process = child_of(loader)
    del loader
    gc.collect()
    assert not process.is_running()


def test_the_process_ends_when_its_parent_was_killed(cache, tmp_path):
    script = tmp_path / "training.py"  # has no `if __name__ == "__main__"`: the process does not run it again
    script.write_text(
        textwrap.dedent(f"""
        import time
        from pathlib import Path
        from storage import CacheReader, ShardLoader, decoded_bytes
        reader = CacheReader(Path({str(cache)!r}))
        shards = reader.shards("train")
        loader = ShardLoader(reader, enumerate(shards), slots=2, slot_bytes=decoded_bytes(reader, shards))
        loader.get(0, shards[0])
        print(loader._process.pid, flush=True)
        time.sleep(600)
        """)
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    process = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    process.wait(60)


def test_the_memory_that_both_processes_hold_stays_the_same_over_three_epochs(tmp_path):
    description = make_description(LAYOUTS["exact"], shards=12, sequences_per_shard=3000)
    reader = CacheReader(build_cache(tmp_path, description))
    shards = reader.shards("train")
    resident = []
    order = [(epoch * 12 + place, shard) for epoch in range(3) for place, shard in enumerate(shards)]
    with loader_of(reader, order, slots=3) as loader:
        for epoch in range(3):
            for place, shard in enumerate(shards):
                loader.get(epoch * 12 + place, shard).hidden["hidden"].sum()
            gc.collect()
            resident.append(sum(process.memory_info().rss for process in (psutil.Process(), child_of(loader))))
    # A fourth slot, or a shard that was kept, would be a shard more.
    assert resident[2] - resident[0] < decoded_bytes(reader, shards) / 2


def test_it_decodes_no_more_than_is_wanted(reader):
    shards = reader.shards("train")
    for targets in ({"hidden"}, {"logits", "draws"}, set()):
        size = decoded_bytes(reader, shards, targets)
        with ShardLoader(reader, enumerate(shards), slots=2, slot_bytes=size, targets=targets) as loader:
            for window, shard in enumerate(shards):
                found, expected = loader.get(window, shard), reader.load(shard, targets=targets)
                assert_same(found, expected)
                assert found.hidden.keys() == expected.hidden.keys()
                assert (found.top_ids is None) == (expected.top_ids is None)


def test_a_wait_can_be_interrupted_from_another_thread(cache, tmp_path):
    reader = CacheReader(cache)
    shards = reader.shards("train")
    shared_by = SharedBy(rank=0, size=2, address=tmp_path / "socket")  # the other one never comes
    size = decoded_bytes(reader, shards)
    with (
        ShardLoader(reader, enumerate(shards), slots=2, slot_bytes=size, shared_by=shared_by) as loader,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(loader.get, 0, shards[0])
        loader.interrupt()
        with pytest.raises(CacheError, match="interrupted"):
            waiting.result(60)


def test_waiting_is_measured(reader):
    shards = reader.shards("train")
    with loader_of(reader, list(enumerate(shards)), slots=SHARDS) as loader:
        loader.get(0, shards[0])
        waited = loader.waited_s
        assert waited > 0
        time.sleep(1)
        loader.get(1, shards[1])
        assert loader.waited_s - waited < 0.5
