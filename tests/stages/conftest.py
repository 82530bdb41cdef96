"""A tokenized corpus and a teacher, made once; each test gets a project folder of its own with copies of them."""

import shutil
from pathlib import Path

import pytest
import yaml

from stages import cache_teacher, corpus, init_student, tokenize_corpus
from stages.config import load_config
from stages.context import Artefacts, Context
from stages.models import load_tokenizer
from tests.stages.tiny_models import tiny_bert
from tests.storage.remote_roots import memory, s3, s3_proxy  # noqa: F401  fixtures
from tests.tiny import tiny_params, write_project


class Project:
    """A project folder with its parameters; `run` calls a stage as the command line would."""

    def __init__(self, folder: Path, **overrides) -> None:
        self.folder = folder
        self.artefacts = Artefacts(project=folder)
        self.context = Context(artefacts=self.artefacts)
        self.set(**overrides)

    def set(self, **overrides) -> None:
        """Take the tiny parameters with these changes."""
        values = tiny_params(**overrides)
        self.config = load_config(values)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    def run(self, stage, *arguments, context=None) -> None:
        """Run the stage's module."""
        stage.run(self.config, context or self.context, *arguments)


@pytest.fixture(scope="session")
def tokenized(tmp_path_factory) -> Path:
    """Documents, tokens and a teacher of random weights, never changed by a test."""
    project = Project(write_project(tmp_path_factory.mktemp("tokenized")))
    project.run(corpus)
    project.run(tokenize_corpus)
    tokenizer = load_tokenizer(project.artefacts.tokens / "tokenizer")
    teacher = tiny_bert(vocabulary=len(tokenizer), hidden=32, layers=2, positions=16)
    teacher.save_pretrained(project.artefacts.teacher)
    tokenizer.save_pretrained(project.artefacts.teacher)
    return project.folder


@pytest.fixture(scope="session")
def cached(tokenized, tmp_path_factory) -> Project:
    """A project with its cache and the student's initial weights, never changed by a test."""
    project = Project(shutil.copytree(tokenized, tmp_path_factory.mktemp("cached") / "project"))
    project.run(cache_teacher)
    project.run(init_student, "half")
    return project


@pytest.fixture
def copy_cached(cached, tmp_path):
    """A function that gives a fresh copy of it."""
    return lambda: Project(shutil.copytree(cached.folder, tmp_path / "cached"))


@pytest.fixture
def make_project(tokenized, tmp_path):
    """`make_project(cache={...})`: a fresh copy of the tokenized project with other parameters."""
    count = 0

    def make(**overrides) -> Project:
        nonlocal count
        count += 1
        folder = tmp_path / f"project-{count}"
        shutil.copytree(tokenized, folder)
        return Project(folder, **overrides)

    return make
