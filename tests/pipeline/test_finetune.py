"""`pipeline finetune` as it is typed: real processes, real signals."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import cli
from stages.config.base import merged
from stages.models import load_tokenizer
from tests.stages.tasks.files import write_files
from tests.stages.tiny_models import tiny_bert
from tests.tiny import ROOT

FINETUNE = {
    "source": "files",
    "folder": "tasks",
    "seeds": [0],
    "training": {
        "epochs": 1,
        "learning_rate": 1.0e-3,
        "batch_size": 4,
        "max_tokens": 16,
        "warmup_fraction": 0.1,
        "weight_decay": 0.01,
    },
    "tasks": {"RTE": {}, "WNLI": {}},
}


@pytest.fixture
def project(make_project):
    """A project with a teacher, a student that is like it, and two tasks of 40 rows."""
    made = make_project()
    tokenizer = load_tokenizer(made.artefacts.teacher)
    tiny_bert(vocabulary=len(tokenizer), hidden=32, layers=1, positions=16).save_pretrained(made.artefacts.student)
    tokenizer.save_pretrained(made.artefacts.student)
    for name, label in {"RTE": "entailment", "WNLI": "1"}.items():
        rows = "".join(f"{n}\tthe teacher\ta student\t{label}\n" for n in range(40))
        text = f"index\tsentence1\tsentence2\tlabel\n{rows}"
        write_files(made.folder / "tasks" / name, {"train.tsv": text, "dev.tsv": text})
    write_params(made)
    return made


def write_params(project, **changes):
    file = project.folder / "params.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**values, "finetune": merged(FINETUNE, changes)}), encoding="utf-8")


def command(project, *arguments):
    return [sys.executable, "-m", "pipeline", "finetune", "--project", str(project.folder), *arguments]


def pipeline(project, *arguments):
    return subprocess.run(command(project, *arguments), capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_table_is_on_stdout_and_transformers_says_nothing(project):
    done = pipeline(project, "--model", "teacher", "RTE")
    assert done.returncode == 0, done.stderr
    assert re.search(r"fine-tuned: median over the seeds.*\n +teacher\n.*\n +RTE, accuracy +\d+\.\d\n", done.stdout)
    assert "LOAD REPORT" not in done.stderr
    assert sorted(path.name for path in (project.folder / "runs" / "finetune").iterdir()) == [
        "summary.json",
        "summary.md",
        "summary.png",
        "teacher",
    ]


def test_a_name_that_is_no_folders_is_refused(project):
    done = CliRunner().invoke(cli, ["finetune", "--project", str(project.folder), "--name", "a/b"])
    assert done.exit_code == 2
    assert "'a/b' is no name for a folder" in done.output


def test_a_process_that_is_told_to_stop_saves_ends_with_143_and_goes_on_from_there(project):
    write_params(project, training={"epochs": 2000}, checkpoint_steps=5)
    with subprocess.Popen(command(project, "WNLI"), stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        until(lambda: list(project.artefacts.checkpoints.glob("finetune-*/checkpoint-*/run.json")), process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert re.search(r"stopped as asked at step \d+ of 20,?000 on WNLI, seed 0", said)
    (record,) = project.artefacts.checkpoints.glob("finetune-*/checkpoint-*/run.json")
    step = json.loads(record.read_text(encoding="utf-8"))["step"]
    assert f"at step {step} of" in said


def until(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.campaign
def test_one_that_is_killed_goes_on_from_its_last_checkpoint(project):
    write_params(project, training={"epochs": 12}, checkpoint_steps=20)
    with subprocess.Popen(
        command(project, "WNLI", "--name", "killed"), stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    ) as process:
        until(lambda: list(project.artefacts.checkpoints.glob("finetune-*/checkpoint-*/run.json")), process)
        process.kill()
    done = pipeline(project, "WNLI", "--name", "killed")
    assert done.returncode == 0, done.stderr
    assert (project.folder / "runs" / "finetune" / "killed" / "WNLI" / "0.json").is_file()
