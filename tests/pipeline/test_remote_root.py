"""`--root` and TEACHER_CACHE_ROOT as their users meet them, and the cache that was fetched in part."""

import json
import shutil

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from pipeline.cli import cli
from stages import cache_teacher, init_student, train_student
from storage import CacheReader, CacheWork
from storage.remote import pull, push
from tests.pipeline.repository import Repository
from tests.storage.damage import flip_a_bit
from tests.storage.remote_roots import opened
from tests.tiny import ROOT


def run(project, *arguments, root=None):
    """A command in this process, with or without the environment variable."""
    environment = {"TEACHER_CACHE_ROOT": root}
    return CliRunner(env=environment).invoke(cli, [*arguments, "--project", str(project.folder)])


def done(result):
    assert result.exit_code == 0, result.output
    return result


def digest(project):
    return CacheReader(project.artefacts.cache).root_digest


@pytest.fixture
def part(make_project, tmp_path):
    """A project whose cache was pulled without its test split, and the root digest of the whole."""
    project = make_project()
    project.run(cache_teacher)
    whole, artefacts = digest(project), project.artefacts
    root = opened(f"file://{tmp_path}/remote")
    sent = push(artefacts.cache, root, artefacts.cache_work)
    pull(root, sent.fingerprint, artefacts.cache, artefacts.cache_work, splits=["train", "validation"])
    return project, whole


def test_the_variable_is_the_option_and_every_command_of_the_road_takes_it(make_project, tmp_path):
    url = f"file://{tmp_path}/remote"
    expected = make_project(compare={"runs": {"few": {"steps": 2}}})
    for stage, *names in ((cache_teacher,), (init_student, "half"), (train_student,)):
        expected.run(stage, *names)
    project = make_project(compare={"runs": {"few": {"steps": 2}}})
    done(run(project, "cache-teacher", root=url))
    done(run(project, "init-student"))
    done(run(project, "train-student", "--root", url))
    done(run(project, "evaluate", root=url))
    done(run(project, "compare", root=url))
    assert not project.artefacts.cache.exists()
    found, wanted = (load_file(each.artefacts.student / "model.safetensors") for each in (project, expected))
    assert all(found[name].equal(wanted[name]) for name in wanted)
    comparison = json.loads(project.artefacts.comparison.read_text())
    assert comparison["cache_root_digest"] == digest(expected)


def test_a_root_without_a_cache_ends_in_one_line_that_says_what_to_do(make_project, tmp_path):
    project = make_project()
    project.run(init_student, "half")
    refused = run(project, "train-student", root=f"file://{tmp_path}/nothing")
    assert refused.exit_code == 1
    (line,) = refused.stderr.splitlines()
    assert line.endswith("holds no finished cache; put one there with `pipeline cache push`")


def test_reading_back_needs_a_root(make_project, tmp_path):
    project = make_project()
    refused = run(project, "cache-teacher", "--verify")
    assert refused.exit_code == 2
    assert "add --root URL" in refused.stderr
    url = f"file://{tmp_path}/remote"
    for _ in range(2):
        done(run(project, "cache-teacher", "--verify", root=url))
    assert not project.artefacts.cache.exists()


def test_a_cache_of_some_splits_is_verified_and_repaired_as_such(part):
    project, whole = part
    before = digest(project)
    done(run(project, "cache", "verify", "--deep"))
    flip_a_bit(next((project.artefacts.cache / "shards").glob("train-*/hidden/c/0/0/0")), 5)
    assert run(project, "cache", "verify").exit_code == 1
    assert "the same as before" in done(run(project, "cache", "repair")).stdout
    assert digest(project) == before != whole


def test_a_repair_of_some_splits_that_was_killed_goes_on_as_such(part):
    project, _ = part
    before, artefacts = digest(project), project.artefacts
    flip_a_bit(next((artefacts.cache / "shards").glob("train-*/hidden/c/0/0/0")), 5)
    with CacheWork.open(artefacts.cache_work, CacheReader(artefacts.cache).description) as work:
        work.take_back(artefacts.cache)  # so far it came
    assert "the same as before" in done(run(project, "cache", "repair")).stdout
    assert digest(project) == before


def test_a_cache_of_some_splits_is_completed_by_the_command_that_makes_caches(part):
    project, whole = part
    shown = done(run(project, "cache-teacher")).output
    assert "cache/current holds no test: what it holds is kept and completed" in " ".join(shown.split())
    assert digest(project) == whole


def test_the_manifest_only_recipe_runs_from_a_root_and_gives_the_same_student(reproduced, tmp_path):
    shutil.copytree(reproduced.folder, tmp_path / "project", symlinks=True)
    repository = Repository(tmp_path / "project")
    shutil.copy(ROOT / "recipes" / "manifest-only" / "dvc.yaml", repository.folder / "dvc.yaml")
    shutil.rmtree(repository.folder / "cache" / "current")
    repository.environment["TEACHER_CACHE_ROOT"] = f"file://{tmp_path}/remote"
    expected = repository.student()
    shown = repository.dvc("repro", "train-student").stdout
    assert "Running stage 'cache-teacher'" in shown
    assert "Running stage 'train-student'" in shown
    assert repository.student() == expected
    assert not (repository.folder / "cache" / "current").exists()
    assert repository.json("cache/manifest.json") == json.loads(
        (reproduced.folder / "cache" / "current" / "manifest.json").read_text()
    )
    del repository.environment["TEACHER_CACHE_ROOT"]
    refused = repository.dvc("repro", "-sf", "train-student", check=False)
    assert "read it where it is (TEACHER_CACHE_ROOT=URL)" in refused.stdout
