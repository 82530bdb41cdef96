"""`pipeline init`: from a recipe to a project that DVC runs, in a checkout and where the package is installed."""

import os
import subprocess
import sys
import zipfile

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.init import FILES, recipes
from stages.config.base import merged
from tests.pipeline.repository import Repository
from tests.pipeline.wheel import build_wheel
from tests.tiny import ROOT

NAMES = list(recipes())


def init(*arguments):
    return CliRunner().invoke(cli, ["init", *map(str, arguments)])


def told(done):
    """Exit code and the one line of an error."""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    return done.exit_code, done.stderr


def test_without_a_name_the_recipes_are_listed_with_what_they_are():
    done = init()
    assert done.exit_code == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "recipes"
    assert [line.split()[0] for line in lines[1 : len(NAMES) + 1]] == NAMES
    assert NAMES[0] == "default"
    for line, recipe in zip(lines[1:], recipes().values(), strict=False):
        assert line.endswith(recipe.description)


@pytest.mark.parametrize("name", NAMES)
def test_a_project_has_the_files_of_its_recipe_and_of_the_default_for_the_rest(tmp_path, name):
    folder = tmp_path / "new" / "project"
    assert init(name, "--into", folder).exit_code == 0
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for file in FILES:
        own = ROOT / "recipes" / name / file
        expected = own if own.is_file() else ROOT / file
        assert (folder / file).read_bytes() == expected.read_bytes()


def test_what_comes_next_is_said(tmp_path):
    fresh, versioned = tmp_path / "a project", tmp_path / "versioned"
    assert f"next: cd '{fresh}'; git init; dvc init; dvc repro\n" in init("default", "--into", fresh).stdout
    (versioned / ".git").mkdir(parents=True)
    (versioned / ".venv").mkdir()
    done = init("manifest-only", "--into", versioned)
    assert f"next: cd {versioned}; dvc init; dvc repro" in done.stdout
    assert "what it needs stands at the top of dvc.yaml" in done.stdout
    assert f"next: cd {versioned}/a; dvc init --subdir; dvc repro" in init("minilm", "--into", versioned / "a").stdout
    (versioned / ".dvc").mkdir()
    (versioned / ".dvc" / "config").touch()
    assert f"next: cd {versioned}/b; dvc repro" in init("minilm", "--into", versioned / "b").stdout


def test_a_recipe_that_reads_another_project_begins_a_repository_around_both(tmp_path, monkeypatch):
    done = init("teacher-assistant", "--into", tmp_path / "student")
    assert f"next: cd {tmp_path}; git init; dvc init; dvc repro student/dvc.yaml" in done.stdout
    monkeypatch.chdir(tmp_path)
    done = init("teacher-assistant", "--into", "second")
    assert "next: git init; dvc init; dvc repro second/dvc.yaml" in done.stdout


def test_of_a_recipe_with_a_corpus_of_the_hub_the_cost_is_looked_at_first(tmp_path):
    done = init("distilbert", "--into", tmp_path / "new")
    assert "git init; dvc init; dvc repro teacher; pipeline plan; dvc repro" in done.stdout


def test_where_there_is_no_dvc_that_is_said_with_the_way_without_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = init("default", "--into", tmp_path / "new")
    assert done.exit_code == 0
    assert "there is no dvc here: `pip install dvc`, or run the commands one by one" in done.stdout


def test_the_folder_that_one_is_in_is_the_one_that_is_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = init("minilm")
    assert "next: git init; dvc init; dvc repro" in done.stdout
    assert (tmp_path / "params.yaml").is_file()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (["params.yaml", "dvc.yaml"], "dvc.yaml, params.yaml would be overwritten; expected an empty folder, such as"),
        (["notes.txt"], "is not empty: it holds notes.txt; expected"),
        ([*"abcdefg"], "is not empty: it holds a, b, c, d, e and 2 more; expected"),
        (["data/", ".gitignore"], "is not empty: .gitignore would be overwritten; it holds data; expected"),
    ],
)
def test_a_folder_that_is_not_empty_is_refused_and_stays_as_it_is(tmp_path, there, message):
    for name in there:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("mine")
    code, error = told(init("distilbert", "--into", tmp_path))
    assert (code, message in error) == (1, True), error
    assert {path.name for path in tmp_path.iterdir()} == {name.removesuffix("/") for name in there}
    assert all(path.read_text() == "mine" for path in tmp_path.iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("distilbrt", "'distilbrt' is no recipe (`pipeline init` lists them); did you mean distilbert?"),
        ("DistilGPT2", "did you mean distilgpt2?"),
        ("whisper", "known: ablation, bilstm, default"),
        ("../docs", "'../docs' is no recipe"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest_one(tmp_path, name, message):
    code, error = told(init(name, "--into", tmp_path / "new"))
    assert (code, message in error) == (2, True), error
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_recipe_and_a_file_for_a_folder_are_wrong_usage(tmp_path):
    assert "--into needs a RECIPE" in init("--into", tmp_path).stderr
    (tmp_path / "file").touch()
    done = init("distilbert", "--into", tmp_path / "file")
    assert (done.exit_code, "is a file" in done.stderr) == (2, True)


SCALED_DOWN = {
    "corpus": {"docstrings": {"packages": ["click"]}, "validation_fraction": 0.2, "test_fraction": 0.2},
    "tokenize": {"train": {"vocabulary_size": 256}},
    "teacher": {
        "train": {
            "hidden_size": 32,
            "feed_forward_size": 64,
            "attention_heads": 2,
            "steps": 4,
            "float32_steps": 4,
            "warmup_steps": 1,
            "batch_size": 8,
        }
    },
    "cache": {"shard_tokens": 2048, "sequences": {"train": 48, "validation": 8, "test": 8}},
    "train": {"steps": 4, "warmup_steps": 1, "batch_size": 8, "micro_batch_size": 8},
}
"""Of the embedded default: the same road, on the docstrings of one small package."""


@pytest.fixture
def begun(tmp_path):
    """What a user has who did as they were told: `pipeline init default`, `git init`, `dvc init`, and smaller values."""
    folder = tmp_path / "project"
    assert init("default", "--into", folder).exit_code == 0
    params = folder / "params.yaml"
    values = merged(yaml.safe_load(params.read_text(encoding="utf-8")), SCALED_DOWN)
    params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    repository = Repository(folder)
    repository.git("init", "-q")
    repository.dvc("init", "-q")
    repository.commit("begun")
    return repository


def test_dvc_runs_the_first_stages_of_a_project_that_was_begun(begun):
    begun.dvc("repro", "tokenize")
    assert set(yaml.safe_load((begun.folder / "dvc.lock").read_text())["stages"]) == {"corpus", "tokenize"}
    assert (begun.folder / "data" / "tokens" / "tokenizer" / "tokenizer.json").is_file()
    assert begun.git("status", "--porcelain").stdout.split() == ["??", "dvc.lock"]


@pytest.mark.campaign
def test_dvc_runs_a_project_that_was_begun_to_its_end(begun):
    begun.dvc("repro")
    assert (begun.folder / "report" / "index.html").is_file()
    begun.commit("done")
    assert "up to date" in begun.dvc("repro").stdout
    tracked = {path.split("/")[0] for path in begun.git("ls-files").stdout.split()}
    assert tracked == {*FILES, ".dvc", "dvc.lock", "cache", "runs"}


def test_the_installed_package_brings_the_recipes(tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(build_wheel(tmp_path)).extractall(site)
    command = [sys.executable, "-m", "pipeline", "init", "distilbert", "--into", "project"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (site / "recipes").iterdir()} == set(NAMES)
    for file in FILES:
        own = ROOT / "recipes" / "distilbert" / file
        written = (tmp_path / "project" / file).read_bytes()
        assert written == (own if own.is_file() else ROOT / file).read_bytes()
