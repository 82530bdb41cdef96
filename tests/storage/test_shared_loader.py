"""One process that decodes shards for several processes of a node. The processes are real ones."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import psutil
import pytest

from storage import CacheReader, ShardLoader, SharedBy, decoded_bytes
from storage.errors import CacheError
from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.damage import flip_a_bit

SHARDS = 7
RANK = textwrap.dedent(
    """
    import json, sys, time
    from pathlib import Path
    from storage import CacheReader, ShardLoader, SharedBy, decoded_bytes
    from storage.errors import CacheError

    cache, address, rank, size, slots, windows, taken, pause = json.loads(sys.argv[1])
    reader = CacheReader(Path(cache))
    shards = reader.shards("train")
    order = [(number, shards[i]) for number, members in enumerate(windows) for i in members]
    shared_by = SharedBy(rank=rank, size=size, address=Path(address))
    size = decoded_bytes(reader, shards)
    found = []
    with ShardLoader(reader, order, slots=slots, slot_bytes=size, shared_by=shared_by) as loader:
        print(json.dumps(loader.process_id), flush=True)
        for number, members in enumerate(windows):
            for i in members:
                if i in taken:
                    try:
                        arrays = loader.get(number, shards[i])
                        time.sleep(pause)  # the others have time to make the process reuse a slot too early
                        found.append([i, arrays.original_ids.tolist(), float(arrays.stat.sum())])
                    except CacheError as error:
                        found.append([i, type(error).__name__, str(error)])
            loader.advance(number + 1)
    print(json.dumps(found), flush=True)
    """
)


@pytest.fixture
def cache(tmp_path):
    return build_cache(tmp_path, make_description(LAYOUTS["masked"], shards=SHARDS))


@pytest.fixture
def start(cache, tmp_path):
    """Start one of the processes."""
    started = []

    def start(rank, size, *, windows, taken=range(SHARDS), slots=3, pause=0.0):
        values = [str(cache), str(tmp_path / "socket"), rank, size, slots, windows, list(taken), pause]
        process = subprocess.Popen(
            [sys.executable, "-c", RANK, json.dumps(values)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def finished(process):
    """The process id of the loader's process (None: another has it), and what was found."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()]


def expected(cache, windows, taken=range(SHARDS)):
    reader = CacheReader(cache)
    arrays = [reader.load(shard) for shard in reader.shards("train")]
    return [
        [i, arrays[i].original_ids.tolist(), float(arrays[i].stat.sum())]
        for members in windows
        for i in members
        if i in taken
    ]


WINDOWS = [[0, 1, 2], [3, 4], [1, 5, 6], [0, 2, 3], [6]]


@pytest.mark.parametrize("slots", [3, 4, 7])
def test_every_process_reads_all_it_wants_from_one_loader_however_fast_it_is(cache, start, tmp_path, slots):
    taken = [range(SHARDS), [1, 4, 6], [0, 5]]
    pauses = [0.0, 0.05, 0.15]
    processes = [
        start(rank, 3, windows=WINDOWS, taken=taken[rank], slots=slots, pause=pauses[rank]) for rank in range(3)
    ]
    results = [finished(process) for process in processes]
    assert [result[1] for result in results] == [expected(cache, WINDOWS, some) for some in taken]
    assert [result[0] is None for result in results] == [False, True, True]
    assert not psutil.pid_exists(results[0][0])
    assert not (tmp_path / "socket").exists()


def test_the_others_may_come_first(cache, start, tmp_path):
    (tmp_path / "socket").touch()  # what a killed run left: nobody answers there
    other = start(1, 2, windows=WINDOWS)
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(1)
    first = start(0, 2, windows=WINDOWS)
    assert finished(first)[1] == finished(other)[1] == expected(cache, WINDOWS)


def test_a_damaged_shard_is_the_error_of_all_that_want_it(cache, start):
    flip_a_bit(cache / "shards/train-v0-000004.zarr/hidden/c/0/0/0", 20)
    processes = [start(rank, 2, windows=WINDOWS) for rank in range(2)]
    for process in processes:
        found = {i: rest for i, *rest in finished(process)[1]}
        assert found[4][0] == "CorruptError"
        assert "train-v0-000004" in found[4][1]
        assert found[3][0] != "CorruptError"


def test_processes_that_go_different_ways_are_told_so(start):
    processes = [start(0, 2, windows=[[0, 1]]), start(1, 2, windows=[[1, 0]])]
    for process in processes:
        kinds = {tuple(rest) for _, *rest in finished(process)[1]}
        assert all(kind == "CacheError" and "ask for different shards" in message for kind, message in kinds)


def test_one_that_was_killed_holds_nobody_up(cache, start):
    slow = start(1, 2, windows=WINDOWS, pause=60)
    first = start(0, 2, windows=WINDOWS)
    slow.stdout.readline()
    slow.send_signal(signal.SIGKILL)
    assert finished(first)[1] == expected(cache, WINDOWS)


def test_the_loader_ends_with_the_last_of_its_users(start):
    processes = [start(rank, 2, windows=WINDOWS, pause=60) for rank in range(2)]
    loader = psutil.Process(json.loads(processes[0].stdout.readline()))
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    loader.wait(60)


def test_a_loader_that_is_never_started_is_an_error(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("storage.loader_process._SECONDS_TO_JOIN", 0.2)
    reader = CacheReader(cache)
    shards = reader.shards("train")
    shared_by = SharedBy(rank=1, size=2, address=tmp_path / "socket")
    with pytest.raises(CacheError, match=r"has started no process that reads shards.*run the same command again"):
        ShardLoader(reader, enumerate(shards), slots=1, slot_bytes=decoded_bytes(reader, shards), shared_by=shared_by)


def test_other_users_cannot_connect(start, tmp_path):
    first = start(0, 2, windows=WINDOWS)
    first.stdout.readline()
    assert (tmp_path / "socket").stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as guest:  # this user can: the mode is all that keeps others out
        guest.connect(str(tmp_path / "socket"))
