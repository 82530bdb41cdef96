"""A project that is ready to be trained."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from stages import cache_teacher, init_student
from tests.stages.conftest import Project

DROPOUT = {"half": {"dropout": 0.1}}
"""A student whose training draws random numbers."""


def narrow(dropout):
    """A student of another width than its teacher."""
    return {
        "architecture": "distilbert",
        "initialise": "random",
        "layers": 1,
        "hidden_size": 16,
        "attention_heads": 2,
        "feed_forward_size": 32,
        "dropout": dropout,
        "seed": 3,
    }


def step_of(checkpoint):
    return int(checkpoint.name.rpartition("-")[2])


class Training(Project):
    """A project with its cache and initial weights."""

    @property
    def run_folder(self):
        return next(self.artefacts.checkpoints.glob("*/"))

    def checkpoints(self):
        """Those that have their name, by step."""
        found = self.artefacts.checkpoints.glob("*/checkpoint-*/run.json")
        return sorted((path.parent for path in found), key=step_of)

    def last_step(self):
        """Of the newest of them."""
        return max(map(step_of, self.checkpoints()), default=0)

    def student(self):
        return load_file(self.artefacts.student / "model.safetensors")

    def log(self):
        return (self.artefacts.runs / "train.csv").read_text()

    def forget(self):
        """Remove what training has left."""
        for folder in (self.artefacts.checkpoints, self.artefacts.student, self.artefacts.runs):
            shutil.rmtree(folder, ignore_errors=True)


class ReadNumbers(TorchDispatchMode):
    """Counts how often a float is read from a tensor: on a GPU each time waits for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._local_scalar_dense.default and arguments[0].is_floating_point():
            self.count += 1
        return function(*arguments, **(keywords or {}))


@pytest.fixture(scope="session")
def with_dropout(tokenized, tmp_path_factory):
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("dropout") / "project")
    project = Project(folder, students=DROPOUT)
    project.run(cache_teacher)
    project.run(init_student, "half")
    return folder


@pytest.fixture
def training(with_dropout, tmp_path):
    """`training(train={...})`: a fresh project, its student with dropout."""

    def make(**overrides):
        return Training(shutil.copytree(with_dropout, tmp_path / "project"), students=DROPOUT, **overrides)

    return make


@pytest.fixture
def without_dropout(cached, tmp_path):
    """The same, where no random numbers are drawn."""

    def make(**overrides):
        number = len(list(tmp_path.iterdir()))
        return Training(shutil.copytree(cached.folder, tmp_path / f"project-{number}"), **overrides)

    return make
