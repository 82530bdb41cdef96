from pathlib import Path

import pytest

from pipeline.temporary_copy import original_of
from stages.context import Artefacts


@pytest.mark.parametrize("copies", [".dvc/tmp/exps", ".dvc/tmp/exps/standalone"])
@pytest.mark.parametrize("inside", [".", "students/large"])
def test_a_copy_that_dvc_made_for_an_experiment_is_known_by_where_it_lies(tmp_path, copies, inside):
    copy = tmp_path / copies / "tmp1a2b"
    (copy / ".dvc").mkdir(parents=True)
    (copy / inside).mkdir(parents=True, exist_ok=True)
    assert original_of(copy / inside) == tmp_path / inside


def test_so_is_one_of_a_dvc_project_in_a_folder_of_the_git_repository(tmp_path):
    copy = tmp_path / "student" / ".dvc/tmp/exps/tmp1a2b"
    (copy / "student" / ".dvc").mkdir(parents=True)
    assert original_of(copy / "student") == tmp_path / "student"


def test_a_project_is_no_copy(tmp_path):
    (tmp_path / ".dvc").mkdir()
    assert original_of(tmp_path) is None
    assert original_of(tmp_path / "inside") is None
    assert original_of(tmp_path.parent) is None


def test_what_a_stopped_run_is_resumed_from_lies_in_the_original_and_all_else_in_the_copy(tmp_path, monkeypatch):
    copy = tmp_path / ".dvc/tmp/exps/tmp1a2b"
    (copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(copy)
    artefacts = Artefacts(project=Path(), kept_in=original_of(Path()))
    assert artefacts.checkpoints == tmp_path / "checkpoints"
    assert artefacts.cache_work == tmp_path / ".cache-work"
    assert artefacts.shown(artefacts.checkpoints) == (tmp_path / "checkpoints").as_posix()
    assert artefacts.shown(artefacts.cache) == "cache/current"
