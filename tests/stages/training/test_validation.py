"""Validation while a student trains: it looks and does not touch, and what it decides survives every end."""

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from stages import init_student, train_student
from stages.config import ConfigError, ValidationConfig, load_config
from stages.context import Context
from stages.errors import InputError, Interrupted
from stages.models import load_masked_lm
from stages.training.checkpoints import checkpoint_step
from stages.training.processes import Processes
from stages.training.run import plan_run
from stages.training.validation import Validation, is_due, judge, validations
from storage import CacheReader
from tests.stages.runners import AfterCalls
from tests.tiny import ROOT, tiny_params

DROPOUT = {"half": {"dropout": 0.1}}
EVERY = {"steps": 2, "sequences": 6}
"""A validation every second step, in two batches of four and two."""


@pytest.fixture
def project(copy_cached):
    """`project(train={...})`: a project with a cache and a student with dropout."""
    copied = copy_cached()

    def make(validation=None, **train):
        change(copied, validation, **train)
        init_student.write_initial_weights(copied.config, copied.context, "half")
        return copied

    return make


def change(project, validation=None, **train):
    """Take other parameters of the training."""
    settings = {"steps": 8, "micro_batch_size": 4, "learning_rate": 0.003, **train}
    if validation is not None:
        settings["validation"] = validation
    project.set(train=settings, students=DROPOUT)


def forget(project):
    """Remove what training makes."""
    for folder in (project.artefacts.checkpoints, project.artefacts.student, project.artefacts.runs):
        shutil.rmtree(folder, ignore_errors=True)


def weights(project):
    return load_file(project.artefacts.student / "model.safetensors")


def figures(project):
    """The content of train.json, without how long it took."""
    content = json.loads((project.artefacts.runs / "train.json").read_text())
    del content["seconds"], content["data_wait"]
    return content


def curve(project):
    """The rows of validation.csv."""
    rows = csv.DictReader((project.artefacts.runs / "validation.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items()} for row in rows]


def outcome(project):
    """All that a training leaves to others."""
    texts = {name: (project.artefacts.runs / name).read_text() for name in ("train.csv", "validation.csv")}
    card = (project.artefacts.student / "README.md").read_text()
    return {name: tensor.tolist() for name, tensor in weights(project).items()}, texts, card, figures(project)


def steps_of_checkpoints(project):
    return {checkpoint_step(path) for path in project.artefacts.checkpoints.glob("*/checkpoint-*")}


def log_of(metric, *values):
    """A log with a validation after every tenth step, and losses between."""
    entries = []
    for number, value in enumerate(values, start=1):
        entries += [{"loss": 1.0, "step": 10 * number}, {f"eval_{metric}": value, "epoch": 0.1, "step": 10 * number}]
    return entries


def test_the_best_is_the_first_of_the_best_and_patience_counts_what_is_not_much_better():
    rules = ValidationConfig(steps=10, patience=2, min_delta=0.1)
    judged = judge(rules, log_of("kl_masked", 0.9, 0.85, 0.7, 0.65))
    assert (judged.best_step, judged.best, judged.since, judged.is_over) == (40, 0.65, 1, False)
    judged = judge(rules, log_of("kl_masked", 0.9, 0.85, 0.7, 0.65, 0.65))
    assert (judged.best_step, judged.since, judged.is_over) == (40, 2, True)


def test_slow_progress_adds_up_for_patience():
    rules = ValidationConfig(steps=10, patience=3, min_delta=0.1)
    assert not judge(rules, log_of("kl_masked", *(1.0 - 0.06 * n for n in range(12)))).is_over


def test_of_an_agreement_the_higher_is_the_better():
    rules = ValidationConfig(steps=10, metric="agreement_all", keep="best")
    assert judge(rules, log_of("agreement_all", 0.5, 0.7, 0.6)).best_step == 20


def test_what_is_not_a_number_is_no_improvement():
    judged = judge(ValidationConfig(steps=10, patience=2), log_of("kl_masked", math.nan, 0.5, math.nan, math.nan))
    assert (judged.best_step, judged.is_over) == (20, True)
    assert judge(ValidationConfig(), log_of("kl_masked", math.nan)).best_step is None


def test_a_validation_is_due_at_its_interval_and_at_the_end_once():
    rules = ValidationConfig(steps=10)
    assert [step for step in range(36) if is_due(rules, [], step, 35)] == [10, 20, 30, 35]
    assert not is_due(rules, log_of("kl_masked", 0.9), 10, 35)
    assert not is_due(ValidationConfig(), [], 35, 35)
    assert validations(log_of("kl_masked", 0.9, 0.8)) == [
        {"step": 10, "kl_masked": 0.9},
        {"step": 20, "kl_masked": 0.8},
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "train.validation.steps is 0; allowed: null or 1 and more"),
        ({"steps": 5, "sequences": 0}, "train.validation.sequences is 0"),
        ({"steps": 5, "patience": 0}, "train.validation.patience is 0"),
        ({"steps": 5, "min_delta": -1}, "train.validation.min_delta is -1.0; allowed: 0 or more"),
        ({"steps": 5, "metric": "loss"}, "train.validation.metric is 'loss'; allowed: kl_masked, kl_all"),
        ({"keep": "best"}, "train.validation.keep is 'best'; allowed: last, as train.validation.steps is null"),
        ({"patience": 2}, "train.validation.patience is 2; allowed: null, as train.validation.steps is null"),
        ({"every": 5}, "unknown key train.validation.every"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_params(train={"validation": settings}))


def test_a_run_is_the_same_run_however_closely_it_is_watched(project):
    made = project()
    reader = CacheReader(made.artefacts.cache)

    def fingerprint(**validation):
        change(made, validation)
        return plan_run(made.config, made.context, reader).fingerprint

    assert fingerprint() == fingerprint(steps=2, sequences=4, metric="mlm_loss")
    assert len({fingerprint(), fingerprint(steps=2, keep="best"), fingerprint(steps=2, patience=1)}) == 3


def test_validations_change_no_weight_and_stand_beside_the_losses(project):
    made = project()
    made.run(train_student)
    unwatched = weights(made)
    (last,) = curve(made)
    assert last["step"] == 8
    forget(made)
    change(made, {"steps": 3})
    made.run(train_student)
    assert all(tensor.equal(unwatched[name]) for name, tensor in weights(made).items())
    assert [row["step"] for row in curve(made)] == [3, 6, 8]
    assert curve(made)[-1] == pytest.approx(last, abs=1e-4)
    assert curve(made)[-1]["kl_all"] < curve(made)[0]["kl_all"]
    logged = csv.DictReader((made.artefacts.runs / "train.csv").read_text().splitlines())
    assert {3, 6, 8} <= {int(row["step"]) for row in logged}
    assert figures(made)["kept_step"] == 8


def stop_and_go(project, *questions):
    """Stop the training when it has asked so often whether to, again and again; then let it end."""
    stops = []
    for count in questions:
        with pytest.raises(Interrupted) as stopped:
            project.run(train_student, context=Context(artefacts=project.artefacts, should_stop=AfterCalls(count)))
        stops.append(str(stopped.value))
    assert not project.artefacts.student.exists()
    project.run(train_student)
    return stops


def test_a_training_stopped_in_a_validation_makes_up_for_it_and_ends_as_if_it_had_not_been(project):
    made = project({**EVERY, "keep": "best", "patience": 4}, log_steps=3)  # some validations are at no step of the log
    made.run(train_student)
    expected = outcome(made)
    assert len(curve(made)) == 4
    for questions, stopped_at in (
        ([2], 2),  # after the first batch of the first validation
        ([3, 0, 1], 2),  # after its last batch, and again and again when it is made up for
        ([4], 3),  # between two validations
        ([14], 8),  # in the last one
    ):
        forget(made)
        stops = stop_and_go(made, *questions)
        assert all(f"at step {stopped_at} of 8; the checkpoint is in" in text for text in stops), (questions, stops)
        assert outcome(made) == expected, questions


def test_a_killed_training_that_is_validated_resumes_to_the_outcome_of_an_uninterrupted_one(project):
    made = project({**EVERY, "keep": "best", "patience": 30}, steps=20, checkpoint_steps=5)
    made.run(train_student)
    expected = outcome(made)
    assert len(curve(made)) == 10
    forget(made)
    command = [sys.executable, "-m", "tests.stages.training.train_process", str(made.folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(made.artefacts.checkpoints.glob("*/checkpoint-?")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not made.artefacts.student.exists()
    made.run(train_student)
    assert outcome(made) == expected


def test_without_an_improvement_training_ends_early_and_is_over(project):
    made = project({**EVERY, "patience": 2, "min_delta": 1000.0}, steps=40, checkpoint_steps=100)
    made.run(train_student)
    assert [row["step"] for row in curve(made)] == [2, 4, 6]
    assert (figures(made)["steps"], figures(made)["kept_step"]) == (6, 6)
    assert "6 of 8 sequences" in (made.artefacts.student / "README.md").read_text()
    expected = outcome(made)
    shutil.rmtree(made.artefacts.student)
    made.run(train_student)  # killed before its publication: it is published, not trained further
    assert outcome(made) == expected
    assert max(steps_of_checkpoints(made)) == 6


def test_the_best_weights_become_the_student_and_stay_when_checkpoints_are_rotated(project):
    # Learning the words alone, and fast, it gets further and further from the teacher.
    words = {"weights": {"kd": 0.0, "mlm": 1.0, "cos": 0.0}, "learning_rate": 0.03, "warmup_steps": 0}
    made = project({"steps": 2, "keep": "best"}, steps=30, checkpoint_steps=4, **words)
    made.run(train_student)
    rows = curve(made)
    best = min(rows, key=lambda row: row["kl_masked"])
    assert best["step"] < 20, "the test wants a run whose best step is not among the last"
    assert figures(made)["kept_step"] == best["step"]
    assert figures(made)["steps"] == 30
    assert figures(made)["validation"]["kl_masked"] == pytest.approx(best["kl_masked"], abs=1e-4)
    kept = next(made.artefacts.checkpoints.glob(f"*/checkpoint-{best['step']:.0f}"))
    assert all(tensor.equal(weights(made)[name]) for name, tensor in load_file(kept / "model.safetensors").items())
    assert steps_of_checkpoints(made) == {best["step"], 28, 30}
    card = (made.artefacts.student / "README.md").read_text()
    assert (
        f"those of step {best['step']:.0f}, the best by KL, masked on the validation split, measured every 2 steps"
        in card
    )
    assert "so the figures of this split flatter them a little" in card
    last = max(kept.parent.glob("checkpoint-*"), key=checkpoint_step)
    assert any(not tensor.equal(weights(made)[name]) for name, tensor in load_file(last / "model.safetensors").items())
    shutil.rmtree(kept)
    with pytest.raises(
        InputError, match=r"is missing: the best weights of a run that is over; bring it back, or remove"
    ):
        made.run(train_student)


def test_processes_share_a_validation_and_stop_together(project):
    made = project({"steps": 2}, micro_batch_size=1)
    module = [sys.executable, "-m", "tests.stages.training.validation_process", str(made.folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            module, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**launch, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    ]
    shared, stopped = zip(*(json.loads(process.communicate()[0]) for process in processes), strict=True)
    assert all(process.returncode == 0 for process in processes)
    student = load_masked_lm(made.artefacts.student_init("half"))
    alone = Validation(made.config.train, CacheReader(made.artefacts.cache), made.context, Processes()).figures(student)
    assert alone["positions"] > 0
    assert shared[0] == shared[1] == pytest.approx(alone, abs=2e-5)
    assert stopped == ({}, {})
