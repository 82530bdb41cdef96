"""One finished cache per layout, built once; tests that damage a cache take a copy."""

import shutil

import pytest

from tests.storage.build import LAYOUTS, build_cache, make_description


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
    """A copy of the `masked` cache, which has every kind of array."""
    return shutil.copytree(caches("masked"), tmp_path / "current")
