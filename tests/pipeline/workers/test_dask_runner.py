"""What a runner with processes of its own promises, with real ones."""

from __future__ import annotations

import os
import time
from contextlib import closing

import psutil
import pytest

from pipeline.workers.cluster import Cluster
from pipeline.workers.dask_runner import DaskRunner
from pipeline.workers.local import ALLOWED_FAILURES, LocalWorkers
from pipeline.workers.process import Machine
from stages.context import Silent
from stages.errors import Interrupted, KillsWorkersError, LostWorkersError
from stages.sharing import Done, Failed, Place
from storage import InvalidTargetsError
from tests.pipeline.workers.jobs import Numbers

MACHINE = Machine("cpu", 1, tensors=False, debug=False)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "workers.log"


@pytest.fixture(scope="module")
def runner(log):
    """Two worker processes, whatever happens to them."""
    before = set(os.environ)
    with DaskRunner(LocalWorkers(2, 1, [], log), MACHINE) as runner:
        yield runner
    assert set(os.environ) == before


def run(runner, job, items, place=Place()):  # noqa: B008  frozen
    with closing(runner.run(job, items, place)) as outcomes:
        return list(outcomes)


def squares(outcomes):
    return sorted(outcome.result[0] for outcome in outcomes if isinstance(outcome, Done))


def failures(outcomes):
    return {outcome.item: outcome.error for outcome in outcomes if isinstance(outcome, Failed)}


def test_every_item_is_done_once_and_the_job_begun_once_in_each_process(runner, tmp_path):
    job = Numbers(tmp_path)
    outcomes = run(runner, job, range(40))
    assert squares(outcomes) == [number**2 for number in range(40)]
    assert sorted(job.noted("started")) == list(range(40))
    processes = {outcome.result[1] for outcome in outcomes}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert sorted(job.noted("begun")) == sorted(job.noted("ended")) == sorted(processes)


def test_items_are_taken_as_they_are_needed(runner, tmp_path):
    taken = []
    outcomes = runner.run(Numbers(tmp_path), (taken.append(number) or number for number in range(1000)), Place())
    with closing(outcomes):
        next(outcomes)
        assert len(taken) <= 2 * 3


def test_an_item_that_fails_is_told_with_its_error_and_the_others_are_done(runner, tmp_path):
    outcomes = run(runner, Numbers(tmp_path, invalid=frozenset({3, 7})), range(10))
    assert squares(outcomes) == [number**2 for number in range(10) if number not in (3, 7)]
    found = failures(outcomes)
    assert found.keys() == {3, 7}
    assert isinstance(found[3], InvalidTargetsError)
    assert str(found[3]) == "3 is not fit to be stored"


def test_the_items_of_a_killed_worker_are_done_elsewhere(runner, tmp_path):
    job = Numbers(tmp_path, deadly_once=frozenset({4}))
    assert squares(run(runner, job, range(12))) == [number**2 for number in range(12)]
    assert job.noted("started").count(4) == 2


def test_an_item_that_kills_every_worker_is_given_up_and_the_others_are_done(runner, tmp_path, log):
    job = Numbers(tmp_path, poison=frozenset({5}))
    outcomes = run(runner, job, range(12))
    assert squares(outcomes) == [number**2 for number in range(12) if number != 5]
    found = failures(outcomes)
    assert found.keys() == {5}
    assert isinstance(found[5], KillsWorkersError)
    assert str(log) in str(found[5])
    assert job.noted("started").count(5) == 2 * (ALLOWED_FAILURES + 1)


def test_asked_to_stop_it_drops_what_is_in_hand_and_says_so(runner, tmp_path):
    job = Numbers(tmp_path, slow=frozenset(range(3, 9)))
    place = Place(should_stop=lambda: len(job.noted("started")) > 4)
    outcomes = run(runner, job, range(9), place)
    assert isinstance(outcomes[-1].error, Interrupted)
    assert sorted(job.noted("begun")) == sorted(job.noted("ended"))
    assert squares(run(runner, Numbers(tmp_path), range(3))) == [0, 1, 4]


@pytest.mark.parametrize("how", ["stuck", "hung"])
def test_asked_to_stop_it_kills_the_processes_of_items_that_do_not_notice(runner, tmp_path, how):
    job = Numbers(tmp_path, **{how: frozenset({3, 4})})
    place = Place(should_stop=lambda: {3, 4} <= set(job.noted("started")))
    outcomes = run(runner, job, [3, 4], place)
    assert isinstance(outcomes[-1].error, Interrupted)
    processes = job.noted("begun")
    assert processes  # one, where the other was not there yet when the items were handed out
    assert not any(psutil.pid_exists(process) for process in processes)
    assert squares(run(runner, Numbers(tmp_path), range(3))) == [0, 1, 4]


def test_a_cluster_is_left_with_an_item_that_does_not_notice_and_forgets_the_job_after_it(runner, tmp_path):
    (tmp_path / "first").mkdir()
    run(runner, Numbers(tmp_path / "first"), [1])
    cluster = Cluster(runner._client.scheduler.address, tmp_path, Silent())
    cluster.drop_seconds = 0.5
    job = Numbers(tmp_path, stuck=frozenset({3}))
    place = Place(should_stop=lambda: 3 in job.noted("started"))
    (tmp_path / "next").mkdir()
    with DaskRunner(cluster, MACHINE) as other:
        assert isinstance(run(other, job, [3], place)[-1].error, Interrupted)
        assert squares(run(other, Numbers(tmp_path / "next"), range(3))) == [0, 1, 4]
    assert job.noted("ended") == []
    (tmp_path / "enough").touch()
    while job.noted("ended") != job.noted("begun"):
        time.sleep(0.01)


def test_without_items_no_process_is_started(tmp_path):
    with DaskRunner(LocalWorkers(1, 1, [], tmp_path / "workers.log"), MACHINE) as runner:
        assert run(runner, Numbers(tmp_path), []) == []
        assert runner._client is None


def test_the_workers_of_a_cluster_that_is_there_are_used_and_left_running(runner, tmp_path):
    run(runner, Numbers(tmp_path), [1])
    address = runner._client.scheduler.address
    with DaskRunner(Cluster(address, tmp_path, Silent()), MACHINE) as other:
        assert squares(run(other, Numbers(tmp_path), range(5))) == [0, 1, 4, 9, 16]
    assert list(tmp_path.glob(".tmp-*")) == []
    assert squares(run(runner, Numbers(tmp_path), range(3))) == [0, 1, 4]


def test_no_scheduler_at_the_address_is_said_with_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.workers.cluster.CONNECT_SECONDS", 1)
    with (
        pytest.raises(LostWorkersError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 .* `dask scheduler`"),
        DaskRunner(Cluster("tcp://127.0.0.1:9", tmp_path, Silent()), MACHINE) as runner,
    ):
        run(runner, Numbers(tmp_path), [1])
