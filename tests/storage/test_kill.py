"""A killed writer loses nothing that it finished, and what follows gives the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage import CacheReader, CacheWork, LockedError, ShardId, verify_cache
from tests.storage.build import LOGITS_ONLY, build_cache, make_description, publish
from tests.storage.writer_process import description

PROJECT = Path(__file__).parents[2]


def start_writer(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.writer_process", str(folder)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at(folder, seconds):
    """Start a writer and kill it so long after it holds the lock; whether that was before its end."""
    with start_writer(folder) as writer:
        assert writer.stdout.readline() == "locked\n"
        time.sleep(seconds)
        writer.send_signal(signal.SIGKILL)
        return writer.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.campaign)])
def test_after_a_kill_at_a_random_moment_the_cache_comes_out_the_same(tmp_path, kills):
    started = time.monotonic()
    expected = CacheReader(build_cache(tmp_path / "uninterrupted", description())).root_digest
    longest = time.monotonic() - started
    moments = random.Random(kills)
    killed = 0
    for number in range(kills):
        folder = tmp_path / f"killed-{number}"
        killed += kill_at(folder, moments.uniform(0, longest))
        build_cache(folder, description())
        assert verify_cache(folder / "current", deep=True).root_digest == expected
        assert not list(folder.rglob(".tmp-*"))
    assert killed, "no writer was killed before its end"


def count_published(folder):
    """Shards with a manifest; looked for only where no writer removes folders meanwhile."""
    return sum(len(list(folder.glob(f"{cache}/manifest/[tv]*.json"))) for cache in ("work/*", "current"))


def test_a_writer_that_is_killed_again_and_again_goes_on_where_it_was(tmp_path):
    expected = CacheReader(build_cache(tmp_path / "uninterrupted", description())).root_digest
    folder = tmp_path / "killed"
    published = 0
    for _ in range(3):
        with start_writer(folder) as writer:
            while writer.poll() is None and count_published(folder) <= published:
                time.sleep(0.002)
            writer.send_signal(signal.SIGKILL)
        assert count_published(folder) >= published
        published = count_published(folder)
    assert published >= 3
    build_cache(folder, description())
    assert CacheReader(tmp_path / "killed" / "current").root_digest == expected


def test_a_second_writer_is_refused_while_the_first_one_lives_and_not_after_its_death(tmp_path):
    with start_writer(tmp_path) as writer:
        assert writer.stdout.readline() == "locked\n"
        writer.send_signal(signal.SIGSTOP)
        with (
            pytest.raises(LockedError, match="another process works on the cache"),
            CacheWork.open(tmp_path / "work", description()),
        ):
            pass
        writer.send_signal(signal.SIGKILL)
    with CacheWork.open(tmp_path / "work", description()) as work:
        assert work.missing() is not None


class Killed(Exception):
    """The process is gone: nothing that changes names on disk works any more."""


def die_after(steps, monkeypatch):
    """Let `steps` changes of names on disk happen, and none after them.

    What happens inside a `.tmp-` folder is neither counted nor stopped (zarr's threads would still be at it): the
    SIGKILL test dies there.
    """
    left = [steps]

    def counted(function):
        def call(path, *arguments, **options):
            inside_a_temporary = "dir_fd" in options or ".tmp-" in str(Path(path).parent)
            if not inside_a_temporary:
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
            return function(path, *arguments, **options)

        return call

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))


@pytest.mark.parametrize("at_destination", ["another cache", "the same cache"])
def test_dying_between_any_two_steps_loses_nothing(tmp_path, monkeypatch, at_destination):
    new = make_description(LOGITS_ONLY, shards=1)
    old = new if at_destination == "the same cache" else make_description(LOGITS_ONLY, shards=1, seed=1)
    start = tmp_path / "start"
    old_digest = CacheReader(build_cache(start, old)).root_digest
    expected = CacheReader(build_cache(tmp_path / "uninterrupted", new)).root_digest
    with CacheWork.open(start / "work", new) as work:
        publish(work, ShardId("validation", 0, 0))
    finished, steps = False, 0
    while not finished:
        folder = tmp_path / f"dies-after-{steps}"
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            die_after(steps, patch)
            try:
                build_cache(folder, new)
                finished = True
            except Killed:
                steps += 1
        build_cache(folder, new)
        assert CacheReader(folder / "current").root_digest == expected
        if old != new:
            assert verify_cache(folder / "work" / old.fingerprint).root_digest == old_digest
        shutil.rmtree(folder)
    assert steps >= 8
