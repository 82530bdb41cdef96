"""A map between hidden states that is trained with the student: in checkpoints, and left behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import cache_teacher, init_student, train_student
from stages.errors import InputError
from stages.models import load_masked_lm
from tests.stages.conftest import Project
from tests.stages.training.conftest import Training, narrow
from tests.stages.training.launch import Launch

CACHE = {"hidden_layers": [0, 1, 2], "attention_vectors": ["queries", "keys", "values"], "attention_layers": [2]}
NARROW = {"narrow": narrow(dropout=0.1)}
TRAIN = {
    "student": "narrow",
    "weights": {"hidden": 1.0, "relations": 1.0, "attention": 0.1},
    "layer_map": [[0, 0], [1, 2]],
    "hidden_projection": True,
    "relations": {"heads": 8},
    "attention_map": [[1, 2]],
    "steps": 6,
    "checkpoint_steps": 3,
    "log_steps": 2,
}
BESIDE = "beside.safetensors"


@pytest.fixture(scope="module")
def with_cache(tokenized, tmp_path_factory):
    project = Project(
        shutil.copytree(tokenized, tmp_path_factory.mktemp("inside") / "project"), cache=CACHE, students=NARROW
    )
    project.run(cache_teacher)
    project.run(init_student, "narrow")
    return project.folder


@pytest.fixture
def training(with_cache, tmp_path):
    """`training(**train)`: a fresh project whose student is narrower than its teacher."""

    def make(students=None, **train):
        folder = shutil.copytree(with_cache, tmp_path / "project")
        return Training(folder, cache=CACHE, students=students or NARROW, train={**TRAIN, **train})

    return make


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_that_goes_on_from_a_checkpoint_leaves_no_trace(training):
    project = training()
    project.run(train_student)
    first, last = project.checkpoints()
    student, log, beside = project.student(), project.log(), load_file(last / BESIDE)
    assert not torch.equal(beside["hidden_projection.weight"], load_file(first / BESIDE)["hidden_projection.weight"])
    for left in (last, project.artefacts.runs, project.artefacts.student):
        shutil.rmtree(left)
    project.run(train_student)
    assert project.log() == log
    assert_same(project.student(), student)
    assert_same(load_file(project.checkpoints()[-1] / BESIDE), beside)


def test_the_map_is_no_part_of_the_student_and_every_term_is_logged(training):
    project = training()
    project.run(train_student)
    expected = load_file(project.artefacts.student_init("narrow") / "model.safetensors")
    assert project.student().keys() == expected.keys()
    assert not (project.artefacts.student / BESIDE).exists()
    assert load_file(project.checkpoints()[-1] / "model.safetensors").keys() == expected.keys()
    assert load_masked_lm(project.artefacts.student).config.hidden_size == 16
    header = project.log().splitlines()[0].split(",")
    assert header == [
        "step",
        "loss",
        "kd",
        "mlm",
        "cos",
        "hidden",
        "relations",
        "attention",
        "learning_rate",
        "grad_norm",
    ]


def test_its_matrix_decays_and_its_bias_does_not(training):
    def weights(decay):
        project = training(weight_decay=decay, steps=2, checkpoint_steps=2)
        project.run(train_student)
        found = load_file(project.checkpoints()[-1] / BESIDE)
        shutil.rmtree(project.folder)
        return [float(found[f"hidden_projection.{name}"].norm()) for name in ("weight", "bias")]

    (weight, bias), (decayed, same_bias) = weights(0.0), weights(400.0)
    assert decayed < 0.9 * weight
    assert same_bias == pytest.approx(bias, rel=0.2)


@pytest.mark.parametrize("damage", ["missing", "of another shape"])
def test_a_checkpoint_without_it_is_refused(training, damage):
    project = training()
    project.run(train_student)
    (first, last) = project.checkpoints()
    shutil.rmtree(last)
    (first / BESIDE).unlink()
    if damage == "of another shape":
        save_file({"hidden_projection.weight": torch.zeros(2, 2)}, first / BESIDE)
    record = first / "run.json"
    content = json.loads(record.read_text())
    del content["files"][BESIDE]
    record.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"beside.safetensors (cannot be loaded|holds .*\(2, 2\).*; expected .*\(32, 16\))"
    ):
        project.run(train_student)


@pytest.mark.parametrize("fsdp", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_give_what_one_does_and_go_on_from_each_others_checkpoints(training, fsdp):
    students = {"narrow": {**NARROW["narrow"], "dropout": 0.0}}
    project = training(students=students, micro_batch_size=2)
    project.run(init_student, "narrow")
    project.run(train_student)
    student, log, beside = project.student(), rows(project), load_file(project.checkpoints()[-1] / BESIDE)
    project.forget()
    command = ("train-student", "-S", f"machine.fsdp={fsdp}")
    with Launch(project.folder, *command, processes=2) as launch:
        assert launch.codes() == [0, 0], launch.output.read_text()
    for left in (project.checkpoints()[-1], project.artefacts.runs, project.artefacts.student):
        shutil.rmtree(left)
    with Launch(project.folder, *command, processes=2 if fsdp else 1) as launch:
        assert set(launch.codes()) == {0}, launch.output.read_text()
    for found, expected in ((project.student(), student), (load_file(project.checkpoints()[-1] / BESIDE), beside)):
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
    for found, expected in zip(rows(project), log, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


def rows(project):
    return [list(map(float, line.split(","))) for line in project.log().splitlines()[1:]]
