"""Training in two processes: real ones, which talk by gloo."""

import csv
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from stages import train_student
from stages.training.run import batch_plan
from storage import CacheReader
from storage.locking import lock
from tests.stages.training.launch import Launch
from tests.storage.damage import flip_a_bit

HALVES = {"micro_batch_size": 4}
"""Two processes take one of these each, one process two."""


def rows(project):
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(project.log().splitlines())]


def assert_close(weights, expected):
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name


def assert_close_rows(found, expected):
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.fixture
def of_one(without_dropout):
    """A project, and the student and the log of one process."""
    project = without_dropout(train=HALVES)
    project.run(train_student)
    weights, log = project.student(), rows(project)
    project.forget()
    return project, weights, log


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_torchrun_shows_one_message_and_the_code_of_each_process(without_dropout):
    project = without_dropout()
    done = torchrun("train-student", "--project", project.folder, "-S", "train.stepz=3")
    assert done.returncode == 1
    assert done.stderr.count("error: unknown key train.stepz; did you mean steps?") == 1
    codes = set(re.findall(r"exitcode *: (-?\d+)", done.stderr))
    assert "2" in codes
    assert codes <= {"2", "-15"}  # torchrun ends the others once one has failed, if they are slower


def test_two_processes_under_torchrun_give_the_losses_and_the_student_of_one(of_one):
    project, weights, log = of_one
    done = torchrun("train-student", "--project", project.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student half") == 1
    assert_close_rows(rows(project), log)
    assert_close(project.student(), weights)
    assert {path.name for path in project.checkpoints()[-1].glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


@pytest.mark.parametrize("fsdp", [False, True], ids=["one process", "FSDP"])
def test_others_go_on_where_two_were_stopped(of_one, fsdp):
    project, weights, log = of_one
    changes = (f"machine.fsdp={fsdp}", "train.checkpoint_steps=3", "train.micro_batch_size=2")  # two to accumulate
    command = ("train-student", *(word for change in changes for word in ("-S", change)))
    with Launch(project.folder, *command, processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    assert_close_rows(rows(project), log)
    assert_close(project.student(), weights)
    for left in (project.checkpoints()[-1], project.artefacts.runs, project.artefacts.student):
        shutil.rmtree(left)
    with Launch(project.folder, *command, processes=2 if fsdp else 1) as launch:
        assert set(launch.codes()) == {0}, launch.output.read_text()
    assert "resuming from checkpoint-6" in launch.output.read_text()
    assert_close_rows(rows(project), log)
    assert_close(project.student(), weights)


def test_a_stop_ends_all_at_the_same_step_and_leaves_no_trace(training):
    project = training(train={**HALVES, "steps": 60, "checkpoint_steps": 7, "log_steps": 4})
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    weights, log = project.student(), project.log()
    project.forget()
    stopped_at = 0
    for number, ranks, code in ((signal.SIGTERM, [1], 143), (signal.SIGINT, [0, 1], 130)):
        with Launch(project.folder, "train-student", processes=2) as launch:
            launch.until(lambda: project.last_step() > stopped_at)  # noqa: B023  it is called here
            for rank in ranks:
                launch.signal(rank, number)
            assert launch.codes() == [code, code], launch.output.read_text()
            (error,) = launch.errors()
        stopped_at = project.last_step()
        assert f"stopped as asked at step {stopped_at} of 60" in error
        assert not project.artefacts.student.exists()
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    assert project.log() == log
    assert_same(project.student(), weights)


def test_a_damaged_shard_is_named_once_and_what_was_done_before_it_is_kept(training):
    project = training(train={**HALVES, "steps": 12, "checkpoint_steps": 100})
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    weights, log = project.student(), project.log()
    project.forget()
    reader = CacheReader(project.artefacts.cache)
    plan, shards = batch_plan(project.config, reader), reader.shards("train")
    first_use = {int(shard): step for step in reversed(range(12)) for shard in plan.batch(step)[:, 0]}
    number, step = max(first_use.items(), key=lambda item: item[1])
    assert step > 0
    file = project.artefacts.cache / "shards" / f"{shards[number]}.zarr" / "hidden" / "c" / "0" / "0" / "0"
    flip_a_bit(file, 100)
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [1, 1], launch.output.read_text()
        (error,) = launch.errors()
    assert str(shards[number]) in error
    assert [path.name for path in project.checkpoints()] == [f"checkpoint-{step}"]
    with Launch(project.folder, "cache", "repair") as launch:
        assert launch.codes() == [0], launch.output.read_text()
    with Launch(project.folder, "train-student", processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    assert project.log() == log
    assert_same(project.student(), weights)


def test_what_is_wrong_is_said_once_and_all_end_with_its_code(without_dropout):
    project = without_dropout(train=HALVES)
    with Launch(project.folder, "train-student", "-S", "train.stepz=3", processes=2) as launch:
        assert launch.codes() == [2, 2]
        assert launch.errors() == ["error: unknown key train.stepz; did you mean steps?"]
    project.run(train_student)
    with (
        lock(project.artefacts.checkpoints, project.run_folder.name),
        Launch(project.folder, "train-student", processes=2) as launch,
    ):
        assert launch.codes() == [75, 75]
        assert len(launch.errors()) == 1
    with Launch(project.folder, "train-student", processes=3) as launch:
        assert launch.codes() == [2, 2, 2]
        (error,) = launch.errors()
    assert "a multiple of train.micro_batch_size x processes = 4 x 3" in error


def test_a_process_that_is_killed_ends_the_other_with_one_line(training):
    project = training(train={**HALVES, "steps": 400, "checkpoint_steps": 5})
    with Launch(project.folder, "train-student", processes=2) as launch:
        launch.until(project.checkpoints)
        launch.signal(1, signal.SIGKILL)
        assert launch.codes() == [1, -signal.SIGKILL]
        (error,) = launch.errors()
    assert error.startswith("error: another process of this training has ended without a word")


def test_processes_that_cannot_find_each_other_are_refused(without_dropout):
    project = without_dropout()
    with Launch(project.folder, "train-student", environment={"WORLD_SIZE": "2", "RANK": "0"}) as launch:
        assert launch.codes() == [2]
        (error,) = launch.errors()
    assert "environment variable MASTER_ADDR expected, but not set" in error
    assert "expected what torchrun sets" in error


def test_fsdp_is_refused_in_one_process(without_dropout):
    project = without_dropout()
    with Launch(project.folder, "train-student", "-S", "machine.fsdp=true") as launch:
        assert launch.codes() == [2]
        assert launch.errors() == [
            "error: machine.fsdp is true; allowed: false in one process (torchrun starts several)"
        ]
