"""DVC as its users know it from other projects: what changed, experiments in the workspace, in a copy and in a queue, real DVC."""

import csv
import hashlib
import io
import json
import shutil
import signal
import sys
import time

import pytest

from tests.pipeline.repository import Repository, stages_run
from tests.tiny import write_params

REPRO_WATCHED = """
import json, os, sys

opened, started = [], []

def note(event, arguments):
    if event == "open":
        opened.append(os.path.abspath(arguments[0]) if isinstance(arguments[0], (str, bytes)) else "")
    elif event == "subprocess.Popen":
        started.append(arguments[1])

sys.addaudithook(note)
from dvc.cli import main
code = main(["repro"])
print(json.dumps({"code": code, "opened": [str(path) for path in opened], "started": [str(command) for command in started]}))
"""
LONG = ("-S", "train.steps=60", "-S", "train.checkpoint_steps=5")


@pytest.fixture
def repository(reproduced, tmp_path):
    """A copy of the reproduced project, to change."""
    shutil.copytree(reproduced.folder, tmp_path / "project", symlinks=True)
    return Repository(tmp_path / "project")


@pytest.fixture(scope="module")
def unchanged(reproduced, tmp_path_factory):
    """Another one, whose files no test changes."""
    folder = tmp_path_factory.mktemp("unchanged") / "project"
    shutil.copytree(reproduced.folder, folder, symlinks=True)
    return Repository(folder)


def experiments(repository):
    """Name -> data of every experiment, as `dvc exp show` has them."""
    (_, baseline) = json.loads(repository.dvc("exp", "show", "--json").stdout)
    return {of_one["name"]: of_one["revs"][0]["data"] for of_one in baseline["experiments"] or []}


def parameter(data, section, name):
    return data["params"]["params.yaml"]["data"][section][name]


def in_dvcs_store(repository, file):
    """Where DVC keeps the content of a file."""
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    return repository.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def test_the_graph_goes_from_text_to_report_and_training_stands_on_the_cache_alone(unchanged):
    edges = [
        line.strip(" ;").split(" -> ") for line in unchanged.dvc("dag", "--dot").stdout.splitlines() if "->" in line
    ]
    before = {
        stage: {one.strip('"') for one, other in edges if other.strip('"') == stage}
        for stage in ("train-student", "report")
    }
    assert before["train-student"] == {"cache-teacher", "init-student@half"}
    assert {"teacher", "cache-teacher", "train-student", "evaluate"} <= before["report"]


def test_status_says_that_nothing_changed_and_then_what_did(repository):
    assert "up to date" in repository.dvc("status").stdout
    write_params(repository.folder, train={"temperature": 4.0})
    status = json.loads(repository.dvc("status", "--json").stdout)
    assert status == {"train-student": [{"changed deps": {"params.yaml": {"train": "modified"}}}]}
    assert json.loads(repository.dvc("params", "diff", "--json").stdout) == {
        "params.yaml": {"train.temperature": {"old": 2.0, "new": 4.0, "diff": 2.0}}
    }


def test_a_repro_with_nothing_to_do_runs_nothing_and_reads_no_file_of_the_cache(unchanged):
    """So it takes as long as a look at the names and times of the files does."""
    for _ in range(2):  # the first one learns the times of this copy's files
        output = unchanged.run(sys.executable, "-c", REPRO_WATCHED).stdout
    watched = json.loads(output.splitlines()[-1])
    tracked = [str(unchanged.folder / name) for name in ("data", "models", "cache/current")]
    assert watched["code"] == 0
    opened = [path for path in watched["opened"] if not path.endswith(".gitignore")]  # looked for in every folder
    assert [path for path in opened if path.startswith(tuple(tracked))] == []
    assert [command for command in watched["started"] if "pipeline" in command] == []


def test_an_experiment_trains_from_the_cache_that_is_there_and_is_shown_beside_the_others(repository):
    output = repository.dvc("exp", "run", "-n", "hot", "-S", "train.temperature=4").stdout
    assert stages_run(output) == ["train-student", "evaluate", "report"]
    found = experiments(repository)["hot"]
    assert parameter(found, "train", "temperature") == 4
    assert found["metrics"]["runs/evaluation.json"]["data"] == repository.json("runs/evaluation.json")
    rows = list(csv.DictReader(io.StringIO(repository.dvc("exp", "show", "--csv").stdout)))
    assert {row["Experiment"]: row["train.temperature"] for row in rows}["hot"] == "4"
    changed = json.loads(repository.dvc("metrics", "diff", "--json").stdout)["runs/evaluation.json"]
    assert changed["weights"]["old"] != changed["weights"]["new"]
    assert json.loads(repository.dvc("plots", "diff", "HEAD", "--json").stdout)["data"]


def copies_of(repository):
    """What `dvc exp run --temp` has made and not removed yet."""
    return list((repository.folder / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*"))


def test_an_experiment_in_a_copy_goes_on_after_ctrl_c_though_dvc_removed_the_copy(repository):
    command = ("exp", "run", "--temp", "-n", "long", *LONG, "train-student")
    repository.end_when(signal.SIGINT, "checkpoints/*/checkpoint-5", 1, "dvc", *command)
    assert copies_of(repository) == []
    output = repository.dvc(*command).stdout
    assert "resuming from checkpoint-" in output
    assert stages_run(output) == ["train-student"]
    assert parameter(experiments(repository)["long"], "train", "steps") == 60
    assert repository.git("status", "--porcelain").stdout == ""


def test_an_experiment_in_a_copy_goes_on_after_a_kill_and_the_copys_cache_is_dvcs_own(repository):
    """Its files have the same inodes: of a cache of a terabyte nothing is copied."""
    command = ("exp", "run", "--temp", *LONG, "train-student")
    repository.end_when(signal.SIGKILL, "checkpoints/*/checkpoint-5", 1, "dvc", *command)
    (copy,) = copies_of(repository)
    file = copy / "cache" / "current" / "manifest.json"
    assert file.samefile(in_dvcs_store(repository, file))
    assert "resuming from checkpoint-" in repository.dvc(*command).stdout


@pytest.mark.campaign  # as `dvc repro` in test_dvc.py, but for what DVC does around it
def test_an_experiment_that_was_killed_in_the_workspace_goes_on(repository):
    command = ("exp", "run", *LONG, "train-student")
    repository.end_when(signal.SIGKILL, "checkpoints/*/checkpoint-5", 1, "dvc", *command)
    output = repository.dvc(*command).stdout
    assert "resuming from checkpoint-" in output
    assert repository.json("runs/train.json")["steps"] == 60


def test_experiments_in_a_queue_train_from_one_cache(repository):
    repository.dvc("exp", "run", "--queue", "-S", "train.seed=1,2", "train-student")
    output = repository.dvc("exp", "run", "--run-all").stdout
    assert set(stages_run(output)) == {"train-student"}
    assert sorted(parameter(of_one, "train", "seed") for of_one in experiments(repository).values()) == [1, 2]


def queued(repository):
    """The states of the experiments in the queue."""
    lines = repository.dvc("queue", "status").stdout.splitlines()
    ends = [line.split()[-1] for line in lines if line.strip()]
    return [end for end in ends if end in {"Queued", "Running", "Success", "Failed"}]


def test_experiments_of_a_queue_run_side_by_side_and_read_the_same_cache(repository):
    repository.dvc("exp", "run", "--queue", "-S", "train.seed=1,2", "train-student")
    try:
        repository.dvc("queue", "start", "-j", "2")
        until = time.monotonic() + 600
        while (states := queued(repository)) != ["Success"] * 2:
            assert "Failed" not in states, repository.dvc("queue", "status").stdout
            assert time.monotonic() < until, states
            time.sleep(1)
    finally:
        repository.dvc("queue", "stop")
    assert sorted(parameter(of_one, "train", "seed") for of_one in experiments(repository).values()) == [1, 2]
    assert repository.git("status", "--porcelain").stdout == ""


def test_a_cache_of_an_earlier_experiment_is_not_computed_again(repository):
    command = ("exp", "run", "--temp", "-S", "cache.top_k=8", "cache-teacher")
    assert stages_run(repository.dvc(*command, "-n", "first").stdout) == ["cache-teacher"]
    output = repository.dvc(*command, "-n", "second", "-S", "train.temperature=4").stdout
    assert stages_run(output) == []
    assert "'cache-teacher' is cached" in output


def test_a_cache_that_was_finished_and_that_dvc_had_not_recorded_yet_is_not_computed_again(repository):
    """A kill while DVC hashes it: at the next start DVC removes it before it runs the stage."""
    repository.dvc("checkout", "--relink")
    write_params(repository.folder, cache={"top_k": 8})
    repository.run("pipeline", "cache-teacher")
    finished = repository.root_digest()
    output = repository.dvc("repro", "cache-teacher").stdout
    assert stages_run(output) == ["cache-teacher"]
    assert "0 of 8 in this start" in output
    assert repository.root_digest() == finished
