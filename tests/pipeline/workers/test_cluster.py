"""A Dask cluster that was started by hand, as in docs/clusters.md, and what is said where it does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest

from pipeline.workers.cluster import SAME, Cluster, _look
from pipeline.workers.dask_runner import DaskRunner
from pipeline.workers.process import Machine
from stages.context import Silent
from stages.errors import LostWorkersError
from stages.sharing import Done, Place
from storage.errors import WriteError
from tests.pipeline.workers.jobs import Numbers
from tests.tiny import ROOT

WITHOUT_PROJECT = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "stages", "storage"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Finder())
"""
"""An environment that this project is not installed in."""

MACHINE = Machine("cpu", 1, tensors=False, debug=False)


class Messages(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


@contextmanager
def dask(what, *arguments, imports=ROOT):
    """`dask scheduler` or `dask worker`, killed in the end."""
    environment = {**os.environ, "PYTHONPATH": str(imports)}
    command = [sys.executable, "-m", "dask", what, *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, cwd=imports, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def scheduler(tmp_path):
    """The address of a scheduler, and its process."""
    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    with dask("scheduler", *options, "--scheduler-file", file) as process:
        while not file.exists() and process.poll() is None:
            time.sleep(0.01)
        yield json.loads(file.read_text())["address"], process


def worker(address, tmp_path, **more):
    options = ["--nthreads", "2", "--memory-limit", "0", "--no-dashboard", "--no-nanny", "--local-directory", tmp_path]
    return dask("worker", address, *options, **more)


def test_a_worker_that_cannot_do_the_work_is_named_with_what_it_lacks_and_a_lost_scheduler_is_said(scheduler, tmp_path):
    address, process = scheduler
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(WITHOUT_PROJECT)
    job = Numbers(tmp_path, slow=frozenset({1}))
    messages = Messages()
    with (
        worker(address, tmp_path, imports=other),
        DaskRunner(Cluster(address, tmp_path, messages), MACHINE) as runner,
        pytest.raises(
            LostWorkersError, match=r"the worker at tcp://.* cannot do this work: it cannot import `pipeline`"
        ),
    ):
        list(runner.run(job, [0], Place()))
    assert any("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='24 hours'" in said for said in messages.said)
    assert job.noted("started") == []

    with (
        worker(address, tmp_path),
        DaskRunner(Cluster(address, tmp_path, messages), MACHINE) as runner,
        closing(runner.run(job, range(2), Place())) as outcomes,
    ):
        assert next(outcomes) == Done(0, (0, job.noted("begun")[0]))
        process.kill()
        with pytest.raises(LostWorkersError, match="the Dask scheduler was lost; what was done is kept"):
            next(outcomes)


def test_a_project_folder_that_nothing_can_be_written_to_is_said(tmp_path):
    not_there = tmp_path / "not there"
    with pytest.raises(WriteError, match=f"what the workers are to see could not be written to {not_there}"):
        Cluster("tcp://node0:8786", not_there, Silent()).check(None, [])


def test_what_a_worker_lacks_is_seen_where_it_runs(tmp_path):
    ours = _look()(str(tmp_path), [*SAME, "no-such-package"])
    assert not ours["sees"]
    assert ours["project"]
    assert ours["versions"]["no-such-package"] == "not installed"
    cluster = Cluster("tcp://node0:8786", tmp_path, Silent())
    assert f"does not see the project folder {tmp_path}" in cluster._wrong(ours, ours)
    assert cluster._wrong({**ours, "sees": True}, ours) is None
    for name, has in {"torch": "1.0", "tokenizers": "0.1", "algorithm masking": 0}.items():
        said = {**ours, "sees": True, "versions": {**ours["versions"], name: has}}
        assert cluster._wrong(said, ours).startswith(f"it has {name} {has}; expected {ours['versions'][name]}, as here")
