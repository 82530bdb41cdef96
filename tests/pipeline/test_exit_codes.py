"""What the process says and returns when something is wrong: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.tiny import ROOT, write_params, write_project


def pipeline(*arguments):
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def run_body(tmp_path, body, *signals, debug=False):
    """Run `execute` on a body given as source, in a process of its own; send it `signals` once it says `ready`."""
    write_params(tmp_path)
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""\
        import sys, time
        from pathlib import Path
        from pipeline.execute import execute
        from stages.errors import ConfigError, InputError, Interrupted
        from storage import LockedError

        def body(config, context):
        {}

        folder = Path(sys.argv[1])
        execute(body, name="stage", project=folder, params_file=folder / "params.yaml", overrides=(), tensors=False,
                torchrun=True, debug={})
        """).format(textwrap.indent(textwrap.dedent(body), "    "), debug),
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        said = ""
        for number in signals:
            assert process.stderr is not None
            for line in process.stderr:
                said += line
                if "ready" in line or "once more" in line:
                    break
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, said + err)


WAIT_FOR_STOP = """\
context.progress.message("ready")
while True:
    context.stop_if_asked("two shards are on disk")
    time.sleep(0.01)
"""
NEVER_STOPS = """\
context.progress.message("ready")
time.sleep(120)
while True:
    pass
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-S", "train.stepz=3"], 2, "error: unknown key train.stepz; did you mean steps?\n"),
        (["-S", "train.steps=0"], 2, "error: train.steps is 0; allowed: 1 or more\n"),
        (
            ["--params", "none.yaml"],
            1,
            "error: no parameters at {project}/none.yaml; run in a project folder, or name one",
        ),
        (["--stepz"], 2, "Error: No such option"),
    ],
)
def test_a_wrong_call_is_one_line_and_its_code(tmp_path, arguments, code, message):
    write_params(tmp_path)
    done = pipeline("corpus", "--project", tmp_path, *arguments)
    assert done.returncode == code
    assert message.format(project=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_project_folder_that_is_not_there_is_wrong_usage(tmp_path):
    done = pipeline("corpus", "--project", tmp_path / "none")
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_an_unknown_command_is_wrong_usage():
    done = pipeline("trian")
    assert done.returncode == 2
    assert "No such command 'trian'" in done.stderr


def test_a_stage_that_cannot_go_on_returns_1_and_leaves_nothing(tmp_path):
    write_project(tmp_path, corpus={"files": {"paths": ["nowhere.txt"]}})
    done = pipeline("corpus", "--project", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "nowhere.txt" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data" / "documents").exists()


def test_a_stage_that_is_done_returns_0_with_its_summary_on_stdout(tmp_path):
    write_project(tmp_path)
    done = pipeline("corpus", "--project", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("corpus\n")
    assert (tmp_path / "data" / "documents" / "train.parquet").is_file()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ('InputError("models/teacher is missing")', 1),
        ('ConfigError("cache.top_k is 999; allowed: at most 120")', 2),
        ('LockedError("process 7 writes .cache-work/ab12")', 75),
        ('OSError(28, "No space left on device")', 1),
        ('Interrupted("another process of the run was stopped")', 143),
    ],
)
def test_each_kind_of_error_has_its_code_and_one_line(tmp_path, error, code):
    done = run_body(tmp_path, f"raise {error}")
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback_and_keeps_the_code(tmp_path):
    done = run_body(tmp_path, 'raise LockedError("taken")', debug=True)
    assert done.returncode == 75
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: taken\n")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = run_body(tmp_path, "raise KeyError('bug')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_stops_at_a_safe_point_with_a_code_that_is_not_0(tmp_path, number, code):
    done = run_body(tmp_path, WAIT_FOR_STOP, number)
    assert done.returncode == code
    assert "error: stopped as asked; two shards are on disk; run the same command again to resume" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_stops_at_once(tmp_path, number, code):
    done = run_body(tmp_path, NEVER_STOPS, number, number)
    assert done.returncode == code
    assert "once more stops at once" in done.stderr


def test_a_signal_that_torchrun_passes_on_once_more_is_the_same_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    once_more = """\
    context.progress.message("ready")
    while not context.should_stop():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    context.stop_if_asked("two shards are on disk")
    """
    done = run_body(tmp_path, f"import os, signal\n{textwrap.dedent(once_more)}", signal.SIGTERM)
    assert done.returncode == 143
    assert "error: stopped as asked; two shards are on disk" in done.stderr


def test_what_all_processes_of_a_node_would_say_the_first_one_says(tmp_path, monkeypatch):
    write_params(tmp_path)
    wrong = ["train-student", "--project", tmp_path, "-S", "train.stepz=3"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "error: unknown key train.stepz; did you mean steps?\n"), ("1", "")):
        monkeypatch.setenv("LOCAL_RANK", rank)
        done = pipeline(*wrong)
        assert (done.returncode, done.stderr) == (2, said)


def test_a_forked_worker_is_not_deaf_to_its_parent(tmp_path):
    body = """\
    import os, signal
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    context.progress.message(f"worker ended by signal {os.WTERMSIG(status)}, asked to stop: {context.should_stop()}")
    """
    done = run_body(tmp_path, body)
    assert done.returncode == 0, done.stderr
    assert "worker ended by signal 15, asked to stop: False" in done.stderr


def test_ranks_come_from_torchrun_and_nonsense_is_refused(tmp_path, monkeypatch):
    report = 'context.progress.message(f"rank {context.rank} of {context.world_size}")'
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "stage: rank 0 of 4" in run_body(tmp_path, report).stderr
    monkeypatch.setenv("RANK", "first")
    done = run_body(tmp_path, report)
    assert done.returncode == 2
    assert "RANK is 'first'; expected a number" in done.stderr


def test_a_command_that_is_one_process_refuses_to_be_two(tmp_path):
    write_project(tmp_path)
    command = [sys.executable, "-m", "pipeline", "compare", "--project", str(tmp_path)]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert done.stderr == (
        "error: pipeline compare was started as 2 processes (WORLD_SIZE); it is one process: start it without torchrun\n"
    )
