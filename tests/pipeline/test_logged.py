"""The log of a command, and its results as JSON."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline import logged
from pipeline.cli import cli
from pipeline.json_results import JsonResults
from pipeline.logged import LogFile, LoggedReporter
from pipeline.progress import PlainReporter
from stages.errors import InputError
from tests.tiny import ROOT, write_project

LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)$")


def lines_of(file):
    return [LINE.match(line)[1] for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_is_appended_to_the_log_of_its_command(tmp_path):
    folder = write_project(tmp_path / "project")
    for _ in range(2):
        assert CliRunner().invoke(cli, ["corpus", "--project", str(folder)]).exit_code == 0
    lines = lines_of(folder / "runs" / "logs" / "corpus.log")
    assert lines.count("corpus: begins") == 2
    assert sum(line.startswith("corpus: corpus, source files") for line in lines) == 2  # its results
    assert lines[-1].startswith("corpus: done, after ")


def test_an_error_is_in_the_log_and_what_came_before_it_too(tmp_path):
    log = LogFile(tmp_path / "logs" / "stage.log")

    def run():
        with LoggedReporter(PlainReporter("stage", write=lambda _: None), log, "stage") as report:
            report.message("half of it is there")
            raise InputError("the other half is missing")

    with pytest.raises(InputError):
        run()
    assert lines_of(log.file)[1:2] == ["stage: half of it is there"]
    assert lines_of(log.file)[-1].startswith("stage: ended by InputError: the other half is missing, after ")


def test_a_killed_run_leaves_its_lines(tmp_path):
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom pipeline.progress import make_reporter\n"
        "from pipeline.logged import LogFile\n"
        "with make_reporter('stage', log=LogFile(Path(sys.argv[1]))) as report:\n"
        "    report.message('one line')\n    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    file = tmp_path / "stage.log"
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    with running:
        assert running.stdout.readline() == b"ready\n"
        os.kill(running.pid, signal.SIGKILL)
    assert lines_of(file) == ["stage: begins", "stage: one line"]


def test_a_log_keeps_to_its_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(logged, "LIMIT_BYTES", 1000)
    log = LogFile(tmp_path / "stage.log")
    for number in range(200):
        log.write(f"line {number}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.log", "stage.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 1000 + 100
    assert lines_of(log.file)[-1] == "line 199"


def test_a_log_that_cannot_be_written_is_said_and_ends_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be", encoding="utf-8")
    said = []
    with LoggedReporter(PlainReporter("stage", write=said.append), LogFile(tmp_path / "logs" / "x.log"), "stage"):
        pass
    assert len(said) == 1
    assert "no log was kept in" in said[0]


def test_json_is_one_object_on_stdout_and_nothing_else(tmp_path):
    folder = write_project(tmp_path / "project")
    done = CliRunner().invoke(cli, ["corpus", "--json", "--project", str(folder)])
    found = json.loads(done.stdout)
    assert found["command"] == "corpus"
    assert found["results"][0]["rows"]["source"] == "files"
    assert "corpus" in done.stderr  # progress is where it was


def test_after_an_error_there_is_no_json(tmp_path):
    folder = write_project(tmp_path / "project")
    done = CliRunner().invoke(cli, ["tokenize", "--json", "--project", str(folder)])
    assert (done.exit_code, done.stdout) == (1, "")


def test_what_json_does_not_know_is_null(capsys):
    results = JsonResults("stage")
    results.table("figures", ["run", "KL"], [["first", float("nan")], ["second", 0.5]])
    results.close()
    assert json.loads(capsys.readouterr().out)["results"] == [
        {"title": "figures", "columns": ["run", "KL"], "rows": [["first", None], ["second", 0.5]]}
    ]
