"""`pipeline cache push` and `pull` as their users meet them: which cache is meant, what is said, how it ends."""

import shutil
from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import cli
from stages.config import cache_spec, load_config
from storage import verify_cache
from tests.storage.build import EXACT, build_cache, make_description
from tests.tiny import ROOT, tiny_params, write_params


def run(folder, *arguments):
    return CliRunner().invoke(cli, ["cache", *map(str, arguments), "--project", str(folder)])


@pytest.fixture
def make_project(tmp_path):
    """A function that makes a project folder with a finished cache; `content` tells caches of one spec apart."""

    def make(name, *, content="0" * 64, cached=True, **overrides):
        folder = tmp_path / name
        folder.mkdir()
        write_params(folder, **overrides)
        if cached:
            spec = cache_spec(load_config(tiny_params(**overrides)))
            description = replace(make_description(EXACT, shards=1), spec=spec, content={"tokens": content})
            shutil.copytree(build_cache(tmp_path / f"build-{name}", description), folder / "cache" / "current")
        return folder

    return make


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/remote"


def fingerprint(folder):
    return yaml.safe_load((folder / "cache" / "current" / "manifest.json").read_text())["fingerprint"]


def test_a_pushed_cache_is_pulled_by_the_parameters_that_it_was_made_with(make_project, url):
    a, other = make_project("a"), make_project("other", cache={"top_k": 8})
    for folder in (a, other):
        assert run(folder, "push", url).exit_code == 0
    b = make_project("b", cached=False)
    done = run(b, "pull", url)
    assert done.exit_code == 0, done.output
    assert "root digest" in done.stdout
    assert verify_cache(b / "cache" / "current") == verify_cache(a / "cache" / "current")


def test_a_project_whose_parameters_fit_no_cache_or_several_is_shown_what_is_there(make_project, url):
    first, second = make_project("first"), make_project("second", content="1" * 64)
    for folder in (first, second):
        run(folder, "push", url)
    for name, overrides, why in (
        ("b", {}, "several were made"),
        ("c", {"cache": {"top_k": 4}}, "none of them was made"),
    ):
        done = run(make_project(name, cached=False, **overrides), "pull", url)
        assert done.exit_code == 1
        assert why in done.stderr
        assert fingerprint(first) in done.stderr
        assert fingerprint(second) in done.stderr
    b = make_project("chosen", cached=False)
    assert run(b, "pull", url, "--fingerprint", fingerprint(second)[:10]).exit_code == 0
    assert fingerprint(b) == fingerprint(second)


def test_the_only_cache_is_taken_and_what_differs_is_said(make_project, url):
    run(make_project("a"), "push", url)
    done = run(make_project("b", cached=False, cache={"top_k": 8}), "pull", url)
    assert done.exit_code == 0
    assert "cache.top_k: 8 expected, 16 in the cache" in done.stderr


def test_a_tracked_manifest_says_which_cache_is_meant(make_project, url):
    first, second = make_project("first"), make_project("second", content="1" * 64)
    for folder in (first, second):
        run(folder, "push", url)
    b = make_project("b", cached=False)
    (b / "cache").mkdir()
    tracked = shutil.copy(second / "cache" / "current" / "manifest.json", b / "cache" / "manifest.json")
    assert run(b, "pull", url).exit_code == 0
    assert verify_cache(b / "cache" / "current") == verify_cache(second / "cache" / "current")
    tracked.write_bytes(tracked.read_bytes()[:-9])
    done = run(b, "pull", url)
    assert done.exit_code == 1
    assert "--fingerprint" in done.stderr


def test_one_split_is_pulled_when_it_is_asked_for(make_project, url):
    a, b = make_project("a"), make_project("b", cached=False)
    run(a, "push", url)
    assert run(b, "pull", url, "--split", "train").exit_code == 0
    assert not list((b / "cache" / "current" / "shards").glob("validation*"))
    assert run(b, "pull", url, "--split", "everything").exit_code == 2


@pytest.mark.parametrize(
    ("command", "where", "message"),
    [
        ("pull", "memory://nothing-is-there", "holds no finished cache; put one there with `pipeline cache push`"),
        ("pull", "nonsense://x", "Protocol not known: nonsense"),
        ("push", "nonsense://x", "Protocol not known: nonsense"),
        ("push", "memory://somewhere", "no finished cache is there"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(make_project, command, where, message):
    done = run(make_project("a", cached=False), command, where)
    assert done.exit_code == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_manifest_only_recipe_differs_from_dvc_yaml_in_what_it_is_about_only():
    main = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((ROOT / "recipes" / "manifest-only" / "dvc.yaml").read_text(encoding="utf-8"))
    guard = "${same_cache}"
    assert "cmp -s cache/manifest.json cache/current/manifest.json" in recipe.pop("vars")[0]["same_cache"]
    stages = main["stages"]
    stages["cache-teacher"]["cmd"] = [
        stages["cache-teacher"]["cmd"],
        '[ -n "$TEACHER_CACHE_ROOT" ] || cp cache/current/manifest.json cache/manifest.json',
    ]
    outs = stages["cache-teacher"]["outs"]
    outs[outs.index("cache/current")] = "cache/manifest.json"
    # One out that is not cached: else DVC's run cache would bring a manifest back, and no cache.
    outs[outs.index("cache/resolved-config.json")] = {"cache/resolved-config.json": {"cache": False}}
    for name in ("train-student", "evaluate"):
        stages[name]["cmd"] = [guard, stages[name]["cmd"]]
        deps = stages[name]["deps"]
        deps[deps.index("cache/current")] = "cache/manifest.json"
    assert recipe == main
