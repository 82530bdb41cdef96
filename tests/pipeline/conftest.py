"""One tiny project, run from text to student by DVC and pushed to a local remote, for all tests that need one."""

import pytest

from tests.pipeline.repository import Repository
from tests.stages.conftest import make_project, tokenized  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """`dvc repro`, `git commit` and `dvc push` are done. Tests copy or clone it and leave it as it is."""
    folder = tmp_path_factory.mktemp("reproduced")
    repository = Repository.create(folder / "project")
    repository.dvc("remote", "add", "-q", "-d", "storage", str(folder / "remote"))
    repository.dvc("repro")
    repository.commit("reproduced")
    repository.dvc("push")
    return repository
