"""Stage one in several processes, killed and interrupted: real processes, real signals, the bytes of one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from stages import cache_teacher
from storage import CacheReader, Part, verify_cache
from tests.stages.conftest import Project
from tests.tiny import ROOT

MANY = {"shard_tokens": 32, "batch_tokens": 32, "sequences": {"train": 100, "validation": 8, "test": 8}}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tokenized):
    """The root digest that one undisturbed process gives."""
    project = Project(shutil.copytree(tokenized, tmp_path_factory.mktemp("one") / "project"), cache=MANY)
    project.run(cache_teacher)
    return CacheReader(project.artefacts.cache).root_digest


@contextmanager
def started(project, *options):
    """`pipeline cache-teacher`, in a process group of its own as a shell would have it."""
    command = [sys.executable, "-m", "pipeline", "cache-teacher", "--project", str(project.folder), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def published(project):
    return len(list(project.artefacts.cache_work.glob("*/manifest/[!.]*.json")))


def until_published(project, process, shards):
    while process.poll() is None and published(project) < shards:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]


def workers_of(process):
    """The worker processes that it has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def finished(project):
    """Its root digest, once it is verified that the cache is whole and nothing is left behind."""
    verify_cache(project.artefacts.cache, deep=True)
    assert not list(project.folder.rglob(".tmp-*"))
    return CacheReader(project.artefacts.cache).root_digest


def test_a_worker_that_is_killed_is_replaced_and_the_cache_is_that_of_one_process(make_project, expected):
    project = make_project(cache=MANY)
    with started(project, "--workers", "2") as process:
        until_published(project, process, 5)
        workers_of(process)[0].kill()
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "distributed" not in said
    assert "Traceback" not in said
    assert finished(project) == expected
    shards = CacheReader(project.artefacts.cache).description.shard_ids()
    assert json.loads(project.artefacts.cache_run.read_text())["shards_computed"] == len(shards)


def test_interrupted_and_killed_it_leaves_no_process_behind_and_goes_on_to_the_same_cache(make_project, expected):
    project = make_project(cache=MANY, machine={"workers": 1})
    with started(project) as process:
        until_published(project, process, 3)
        workers = workers_of(process)
        assert len(workers) == 1
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: it reaches the workers too
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert "error: stopped as asked; every finished shard" in said
    assert "Traceback" not in said
    assert not any(worker.is_running() for worker in workers)

    with started(project, "--workers", "1") as process:
        until_published(project, process, published(project) + 3)
        workers = workers_of(process)
        process.kill()
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() for worker in workers)
    assert not project.artefacts.cache.exists()
    project.run(cache_teacher)
    assert finished(project) == expected


def test_sigterm_ends_a_single_process_within_a_shard_and_the_next_starts_go_on(make_project, expected):
    project = make_project(cache=MANY)
    with started(project) as process:
        until_published(project, process, 3)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()
    assert process.returncode == 143, said
    for number in (1, 2):
        cache_teacher.run(project.config, project.context, part=Part(number, 2))
    assert not project.artefacts.cache.exists()
    project.run(cache_teacher)
    assert finished(project) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shards", "3/2"], "Invalid value for '--shards': part 3/2 is none; expected I/N with 1 <= I <= N"),
        (["--workers", "0"], "Invalid value for '--workers'"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "give one"),
    ],
)
def test_a_wrong_way_to_share_the_work_is_wrong_usage(tmp_path, options, message):
    command = [sys.executable, "-m", "pipeline", "cache-teacher", "--project", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_teacher_that_takes_all_devices_is_not_shared_out(make_project):
    project = make_project(machine={"device_map": "auto"})
    command = [sys.executable, "-m", "pipeline", "cache-teacher", "--project", str(project.folder), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "machine.device_map is auto: one teacher takes all devices of a process" in done.stderr


def test_documents_are_read_by_many_whatever_devices_the_teacher_takes(make_project):
    project = make_project(machine={"device_map": "auto"})
    documents = [path.read_bytes() for path in sorted(project.artefacts.documents.glob("*.parquet"))]
    command = [sys.executable, "-m", "pipeline", "corpus", "--project", str(project.folder), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [path.read_bytes() for path in sorted(project.artefacts.documents.glob("*.parquet"))] == documents
