"""SIGKILL at any moment of a training: what comes out of it in the end is what an uninterrupted one gives, bit for bit."""

import json
import random
import shutil
import signal
import time

import pytest
import torch

from stages import train_student
from tests.stages.training.launch import Launch

TRAIN = {"steps": 60, "checkpoint_steps": 5, "log_steps": 4}


def finish(project):
    with Launch(project.folder, "train-student") as launch:
        assert launch.codes() == [0], launch.output.read_text()
    return project.student(), project.log()


def assert_same(found, expected):
    assert found[1] == expected[1]
    assert found[0].keys() == expected[0].keys()
    for name, tensor in found[0].items():
        assert torch.equal(tensor, expected[0][name]), name


def kill(project, when):
    """Start the training and kill it when `when(launch)` returns; False where it was done before that."""
    with Launch(project.folder, "train-student") as launch:
        when(launch)
        launch.signal(0, signal.SIGKILL)
        return launch.codes() == [-signal.SIGKILL]


def drafts(project):
    """Checkpoints that have no name yet."""
    return list(project.artefacts.checkpoints.glob("*/.tmp-draft/checkpoint-*"))


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=pytest.mark.campaign)], ids=["a few times", "again and again"]
)
def test_a_run_killed_at_random_moments_comes_out_as_an_uninterrupted_one(training, kills):
    project = training(train=TRAIN)
    expected = finish(project)
    seconds = json.loads((project.artefacts.runs / "train.json").read_text())["seconds"]
    project.forget()
    moments = random.Random(6)

    def at_a_random_moment(launch):
        launch.until(lambda: list(project.artefacts.checkpoints.glob("*/provenance.json")))
        time.sleep(moments.uniform(0.0, seconds))

    done = 0
    while done < kills:
        if kill(project, at_a_random_moment):
            done += 1
        else:  # it was faster than that: once more from the start
            assert_same((project.student(), project.log()), expected)
            project.forget()
    assert_same(finish(project), expected)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.campaign)], ids=["once", "again and again"])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(training, kills):
    project = training(train=TRAIN)
    expected = finish(project)
    project.forget()
    torn = 0
    for _ in range(kills):
        for left in drafts(project):
            shutil.rmtree(left)
        assert kill(project, lambda launch: launch.until(lambda: project.checkpoints() and drafts(project)))
        torn += len(drafts(project))
    assert torn
    assert_same(finish(project), expected)


def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(without_dropout):
    project = without_dropout(train={"checkpoint_steps": 3})
    project.run(train_student)
    expected = project.student(), project.log()
    optimizer = project.checkpoints()[-1] / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    with Launch(project.folder, "train-student") as launch:
        assert launch.codes() == [0], launch.output.read_text()
        said = launch.output.read_text()
    assert "checkpoint-8 is damaged (optimizer.pt has" in said
    assert "resuming from checkpoint-6" in said
    assert_same((project.student(), project.log()), expected)
    assert [path.name for path in project.checkpoints()] == ["checkpoint-6", "checkpoint-8"]
