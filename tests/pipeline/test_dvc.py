"""`dvc repro` as its users know it, with real DVC on a tiny project."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipeline.repository import Repository, stages_run
from tests.tiny import ROOT, write_params


@pytest.fixture
def repository(reproduced, tmp_path):
    """A copy of the reproduced project, to change."""
    shutil.copytree(reproduced.folder, tmp_path / "project", symlinks=True)
    return Repository(tmp_path / "project")


def test_every_stage_is_in_the_lock_file_after_the_first_repro(repository):
    stages = [
        "corpus", "tokenize", "teacher", "cache-teacher", "init-student@half", "train-student", "evaluate", "report",
    ]  # fmt: skip
    assert set(yaml.safe_load((repository.folder / "dvc.lock").read_text())["stages"]) == set(stages)


def test_a_second_repro_runs_nothing(repository):
    output = repository.dvc("repro").stdout
    assert stages_run(output) == []
    assert "up to date" in output
    assert repository.git("status", "--porcelain").stdout == ""


def test_metrics_plots_and_parameters_are_known_to_dvc(repository):
    shown = repository.dvc("metrics", "show").stdout
    for name in ("kl_masked", "mlm_loss", "bytes_per_train_position", "ratio.cpu.latency"):
        assert name in shown
    plots = repository.dvc("plots", "show", "--json").stdout
    assert "runs/train.csv" in plots
    assert "runs/validation.csv" in plots
    assert "report/plots/student-loss.png" in plots


def test_a_changed_training_parameter_runs_training_and_what_follows_only(repository):
    write_params(repository.folder, train={"learning_rate": 0.002})
    assert stages_run(repository.dvc("repro").stdout) == ["train-student", "evaluate", "report"]


def test_a_changed_batch_size_of_the_teacher_runs_nothing(repository):
    write_params(repository.folder, cache={"batch_tokens": 128})
    assert stages_run(repository.dvc("repro").stdout) == []


def test_a_changed_cache_parameter_makes_a_new_cache_and_the_old_one_comes_back_with_git(repository):
    first = repository.root_digest()
    write_params(repository.folder, cache={"top_k": 8})
    assert stages_run(repository.dvc("repro").stdout) == ["cache-teacher", "train-student", "evaluate", "report"]
    assert repository.root_digest() != first
    repository.commit("top 8")
    repository.git("checkout", "-q", "HEAD~1")
    repository.dvc("checkout")
    assert repository.root_digest() == first
    assert stages_run(repository.dvc("repro").stdout) == []


def test_a_kill_in_the_middle_of_the_cache_resumes_to_the_same_root_digest(repository, tmp_path):
    write_params(repository.folder, cache={"shard_tokens": 32, "top_k": 12})
    repository.end_when(signal.SIGKILL, f".cache-work/{'?' * 64}/manifest/[!.]*.json", 4, "dvc", "repro")
    assert not (repository.folder / "cache" / "current").exists()
    output = repository.dvc("repro").stdout
    assert "shards are there and whole" in output
    interrupted = repository.root_digest()
    shutil.rmtree(repository.folder / "cache" / "current")
    repository.dvc("repro", "-sf", "cache-teacher")
    assert repository.root_digest() == interrupted


def test_a_kill_in_the_middle_of_the_training_resumes_to_the_same_weights(repository):
    write_params(repository.folder, train={"steps": 60, "checkpoint_steps": 5})
    repository.end_when(signal.SIGKILL, "checkpoints/*/checkpoint-5", 1, "dvc", "repro")
    output = repository.dvc("repro").stdout
    assert "resuming from checkpoint-" in output
    interrupted = repository.student()
    shutil.rmtree(repository.folder / "checkpoints")
    repository.dvc("repro", "-sf", "train-student")
    assert repository.student() == interrupted


def test_the_projects_own_folder_is_one_that_dvc_takes(tmp_path):
    """A second dvc.yaml, such as that of a recipe, would be a part of the pipeline and keep `make demo` from its start."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    dvc = shutil.which("dvc", path=Path(sys.executable).parent)
    done = subprocess.run([dvc, "dag", "--md"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train-student" in done.stdout
    assert "recipes" not in done.stdout
