"""The git commit of a project folder, in real repositories."""

import shutil

import pytest

from pipeline.environment import git_commit
from tests.pipeline.repository import Repository

FILES = ("params.yaml", "dvc.lock", "runs/train.json", "cache/run.json", "stages/code.py")


@pytest.fixture
def repository(tmp_path):
    made = Repository(tmp_path / "project")
    for name in FILES:
        file = made.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before\n")
    made.git("init", "-q")
    made.commit("all files")
    return made


def head(repository):
    return repository.git("rev-parse", "HEAD").stdout.strip()


def test_a_clean_folder_gives_the_commit(repository):
    assert git_commit(repository.folder) == head(repository)
    assert len(head(repository)) == 40


@pytest.mark.parametrize("name", ["params.yaml", "stages/code.py"])
def test_a_changed_file_marks_the_commit_as_modified(repository, name):
    (repository.folder / name).write_text("after\n")
    assert git_commit(repository.folder) == f"{head(repository)} (modified)"


@pytest.mark.parametrize("name", ["dvc.lock", "runs/train.json", "cache/run.json"])
def test_what_the_stages_write_themselves_does_not_count(repository, name):
    (repository.folder / name).write_text("after\n")
    assert git_commit(repository.folder) == head(repository)


def test_files_that_git_does_not_track_do_not_count(repository):
    (repository.folder / "notes.txt").write_text("mine\n")
    assert git_commit(repository.folder) == head(repository)


def test_a_project_in_a_subfolder_leaves_out_its_own_outputs_and_sees_changed_code_above_it(repository):
    project = repository.folder / "experiments" / "one"
    (project / "runs").mkdir(parents=True)
    (project / "runs" / "train.json").write_text("before\n")
    repository.commit("a project below")
    (project / "runs" / "train.json").write_text("after\n")
    assert git_commit(project) == head(repository)
    (repository.folder / "stages" / "code.py").write_text("after\n")
    assert git_commit(project) == f"{head(repository)} (modified)"


def test_there_is_no_commit_outside_of_git_and_before_the_first_one(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit(tmp_path) is None
    Repository(tmp_path).git("init", "-q")
    assert git_commit(tmp_path) is None


def test_a_machine_without_git_has_no_commit(repository, monkeypatch, tmp_path):
    assert shutil.which("git")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(repository.folder) is None
