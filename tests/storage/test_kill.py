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


def test_a_writer_killed_at_random_moments_resumes_to_the_same_root_digest(tmp_path):
    expected = CacheReader(build_cache(tmp_path / "uninterrupted", description())).root_digest
    moments = random.Random(0)
    kills = 0
    published_before = 0
    for _ in range(4):
        writer = start_writer(tmp_path / "killed")
        assert writer.stdout.readline() == "locked\n"
        if kills == 0:
            with (
                pytest.raises(LockedError, match="another process works on the cache"),
                CacheWork.open(tmp_path / "killed" / "work", description()),
            ):
                pass
        time.sleep(moments.uniform(0.02, 0.3))
        writer.send_signal(signal.SIGKILL)
        kills += writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        published = len(list((tmp_path / "killed").glob("*/**/manifest/*.json")))
        assert published >= published_before
        published_before = published
        if (tmp_path / "killed" / "current").exists():
            break
    assert kills >= 1
    with start_writer(tmp_path / "killed") as writer:
        assert writer.wait() == 0
    assert verify_cache(tmp_path / "killed" / "current", deep=True).root_digest == expected
    assert not list(tmp_path.rglob(".tmp-*"))


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
