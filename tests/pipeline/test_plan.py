"""`pipeline plan` as a user calls it."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.plan import show
from pipeline.progress import PlainReporter
from stages import plan
from tests.pipeline.terminal import LOOKS, Screen, visible
from tests.stages.conftest import Project
from tests.tiny import ROOT

SAMPLE = ("--sample-tokens", "400")
NUMBER = (int, float)
SCHEMA = {
    "fingerprint": str,
    "device": str,
    "threads": int,
    "preset": str,
    "positions": str,
    "sample_tokens": {"train": int, "validation": int, "test": int},
    "splits": {
        split: {
            "sequences": int,
            "tokens": int,
            "variants": int,
            "positions": int,
            "shards": int,
            "bytes": int,
            "bytes_per_position": dict,
        }
        for split in ("train", "validation", "test")
    },
    "bytes_beside_shards": int,
    "bytes": int,
    "presets": {
        name: {"bytes": int, "bytes_per_train_position": NUMBER} for name in ("lossless", "exact", "balanced", "small")
    },
    "disk": {
        "at_root": bool,
        "free_bytes": int,
        "reflinks": (bool, type(None)),
        "hard_links": bool,
        "copies": int,
        "needed_bytes": int,
        "fits": bool,
        "write_bytes_per_second": (int, type(None)),
    },
    "teacher": {
        "parameters": int,
        "precision": str,
        "attention": str,
        "compiled": bool,
        "batch_tokens": int,
        "tokens_to_run": int,
        "tokens_per_second": NUMBER,
        "slowest": NUMBER,
        "fastest": NUMBER,
    },
    "hours": {"1": NUMBER, "2": NUMBER, "16": NUMBER},
    "write_hours": (*NUMBER, type(None)),
    "student_run": {
        "tokens": int,
        "online_seconds": NUMBER,
        "cached_seconds": NUMBER,
        "of_which_head": NUMBER,
        "cache_seconds": NUMBER,
        "runs_to_break_even": (int, type(None)),
    },
    "memory": {"weights": int, "activations": int, "method": str, "head_kept": int, "saved": int},
}


@pytest.fixture(scope="module")
def planned_once(tokenized, tmp_path_factory):
    project = Project(shutil.copytree(tokenized, tmp_path_factory.mktemp("planned") / "project"))
    return plan.run(project.config, project.context, sample_tokens=400)


@pytest.fixture
def planned(planned_once):
    """A plan that a test may change."""
    return copy.deepcopy(planned_once)


def pipeline(project, *arguments):
    return CliRunner().invoke(cli, ["plan", "--project", str(project.folder), *SAMPLE, *arguments])


def assert_has_the_form(value, schema, where=""):
    if isinstance(schema, dict):
        assert value.keys() == schema.keys(), where
        for name, inner in schema.items():
            assert_has_the_form(value[name], inner, f"{where}.{name}")
    else:
        assert isinstance(value, schema), f"{where} is {value!r}"


def names_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_json_on_stdout_is_one_object_of_the_documented_form_and_nothing_else(make_project):
    project = make_project()
    before = names_below(project.folder)
    done = pipeline(project, "--json", "-", "--workers", "2,16")
    assert done.exit_code == 0, done.stderr
    assert_has_the_form(json.loads(done.stdout), SCHEMA)
    assert names_below(project.folder) == before


def test_every_key_of_the_json_is_in_the_documentation():
    text = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    for name, inner in SCHEMA.items():
        assert f"`{name}`" in text
        for key in inner if isinstance(inner, dict) and name in ("disk", "teacher", "student_run", "memory") else ():
            assert f"`{key}`" in text, f"{name}.{key}"


def test_a_file_gets_the_json_and_stdout_the_tables(make_project, tmp_path):
    project = make_project()
    done = pipeline(project, "--json", str(tmp_path / "plan.json"))
    assert done.exit_code == 0, done.stderr
    planned = json.loads((tmp_path / "plan.json").read_text())
    for text in (
        "preset lossless",
        "as configured",
        "when it pays",
        "one pass of the teacher",
        f"{planned['teacher']['parameters']:,}",
    ):
        assert text in done.stdout


def test_the_tables_fit_a_terminal_of_80_columns(planned, monkeypatch):
    planned["splits"]["train"].update(sequences=123_456_789, tokens=45_678_901_234, positions=6_789_012_345)
    for name in LOOKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    show(planned, PlainReporter("plan"))
    lines = visible(screen.written()).splitlines()
    assert len(lines) > 40
    assert max(map(len, lines)) <= 80
    assert "6,789,012,345" in screen.written()


def test_reasons_not_to_trust_a_plan_or_not_to_follow_it_are_said_in_a_line_each(planned):
    said = []
    reporter = PlainReporter("plan", said.append)
    planned["teacher"].update(slowest=100.0, fastest=199.0)
    show(planned, reporter)
    assert said == []
    planned["teacher"].update(slowest=100.0, fastest=450.0)
    planned["disk"].update(fits=False, needed_bytes=3_000_000_000, free_bytes=1_000_000_000)
    show(planned, reporter)
    rough, full = said
    assert "4.5 times" in rough
    assert "needs 3.000 GB here and 1.000 GB are free" in full


def test_a_cache_at_a_root_is_said_not_to_be_probed(make_project, tmp_path):
    done = pipeline(make_project(), "--root", f"file://{tmp_path}/root")
    assert done.exit_code == 0, done.stderr
    assert "not probed" in done.stdout
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("workers", ["0", "two", "1,,2", "-1", ""])
def test_workers_that_are_no_numbers_are_wrong_usage(make_project, workers):
    done = pipeline(make_project(), "--workers", workers)
    assert done.exit_code == 2
    assert "1,2,4,8" in done.stderr


def test_a_project_without_tokens_is_told_what_to_run(tmp_path, make_project):
    project = make_project()
    project.artefacts.tokens.rename(tmp_path / "elsewhere")
    done = pipeline(project)
    assert done.exit_code == 1
    assert "run: pipeline tokenize" in done.stderr


def test_a_plan_stopped_by_a_signal_says_so_and_leaves_nothing(make_project):
    project = make_project()
    before = names_below(project.folder)
    command = [sys.executable, "-m", "pipeline", "plan", "--project", str(project.folder), "--sample-tokens", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        scratch = project.artefacts.cache_work / ".tmp-plan"
        while not scratch.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "a plan keeps nothing" in said
    assert names_below(project.folder) == before
