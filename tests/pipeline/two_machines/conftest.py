"""A store, a place for git, and machines that have nothing else in common."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pipeline.repository import Repository
from tests.pipeline.two_machines.machine import Machine
from tests.pipeline.two_machines.store import Store, s3_store
from tests.pipeline.wheel import build_wheel


@dataclass(frozen=True)
class Place:
    """Two machines, and what both of them reach: a bare git repository and a store that speaks S3."""

    hub: Path
    store: Store
    teacher: Machine
    student: Machine


@pytest.fixture(scope="session")
def new_place(tmp_path_factory):
    """A function that makes such a place in a folder of its own."""
    for package in ("boto3", "dvc_s3", "moto", "pip", "s3fs"):
        pytest.importorskip(package, reason=f"{package} is not installed: make test")
    wheel = build_wheel(tmp_path_factory.mktemp("wheel"))
    with ExitStack() as stores:

        def new(name: str) -> Place:
            folder = tmp_path_factory.mktemp(name)
            store = stores.enter_context(s3_store("teacher", "student"))
            Repository(folder).run("git", "init", "-q", "--bare", "-b", "main", "hub.git")
            teacher, student = (
                Machine(folder / f"machine-of-the-{user}", user, wheel, store.aws(user)) for user in store.keys
            )
            return Place(folder / "hub.git", store, teacher, student)

        yield new
