"""One finished cache per layout, built once; tests that damage a cache take a copy."""

import shutil

import pytest

from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.remote_roots import memory, s3, s3_proxy, url  # noqa: F401  fixtures


@pytest.fixture(scope="session")
def caches(tmp_path_factory):
    """A function from the name of a layout to the folder of a finished cache, which must not be changed."""
    built = {}

    def of(name):
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            built[name] = build_cache(folder, make_description(LAYOUTS[name], shards=2))
        return built[name]

    return of


@pytest.fixture
def cache(caches, tmp_path):
    """A copy of the `masked` cache, which has every kind of array whose rows are all alike."""
    return shutil.copytree(caches("masked"), tmp_path / "current")


@pytest.fixture
def ragged_cache(caches, tmp_path):
    """A copy of the `tail` cache, which has every kind of array whose rows differ in length."""
    return shutil.copytree(caches("tail"), tmp_path / "current")
