"""What `--dry-run` says, beside what is done afterwards; and that it writes nothing."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from tests.stages.conftest import Project, cached, copy_cached  # noqa: F401  fixtures
from tests.tiny import ROOT, write_project

STAGES = ("corpus", "tokenize", "teacher", "cache-teacher", "init-student", "train-student", "evaluate", "report")


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def dry(folder, command, *arguments):
    """The rows that it says, of all its results."""
    before = everything_in(folder)
    done = CliRunner().invoke(cli, [command, *arguments, "--dry-run", "--json", "--project", str(folder)])
    assert done.exit_code == 0, done.output
    assert everything_in(folder) == before
    return {name: value for result in json.loads(done.stdout)["results"] for name, value in result["rows"].items()}


def test_in_an_empty_project_every_stage_says_that_its_input_is_missing_and_ends_well(tmp_path):
    folder = write_project(tmp_path / "project")
    said = {stage: dry(folder, stage) for stage in STAGES}
    assert said["corpus"] == {"reads": "1 files, 0.0 megabytes", "writes data/documents": "missing"}
    assert said["tokenize"]["reads data/documents"] == "missing"
    assert said["teacher"]["trains"] == "8 steps of 16 sequences (8 in float32)"
    assert "there are no tokens" in said["cache-teacher"]["would compute"]
    assert said["train-student"]["reads cache/current"] == "missing"
    assert said["evaluate"]["reads models/student"] == "missing"
    assert said["report"]["writes report/index.html"] == "missing"


def test_of_a_cache_it_says_which_shards_are_there(make_project):
    project = make_project()
    assert dry(project.folder, "cache-teacher")["shards there"].startswith("0 of about ")
    pipeline(project, "cache-teacher", "--shards", "1/2")
    half = dry(project.folder, "cache-teacher")
    there, total = map(int, half["shards there"].split(" of "))
    assert (there, half["shards missing"]) == (-(-total // 2), total - -(-total // 2))
    pipeline(project, "cache-teacher")
    assert dry(project.folder, "cache-teacher")["would compute"] == "nothing; it is verified"
    assert "of other parameters: cache.top_k" in str(dry(project.folder, "cache-teacher", "-S", "cache.top_k=8"))


def test_of_a_training_it_says_how_many_steps_are_there(copy_cached):  # noqa: F811  a fixture
    project = copy_cached()
    before = dry(project.folder, "train-student")
    assert (before["steps there"], before["newest checkpoint"]) == ("0 of 8", "none")
    pipeline(project, "train-student")
    after = dry(project.folder, "train-student")
    assert (after["steps missing"], after["models/student is of this run"]) == (0, True)
    assert after["writes models/student"] == "there, of these parameters"
    other = dry(project.folder, "train-student", "-S", "train.temperature=4")
    assert (other["steps there"], other["models/student is of this run"]) == ("0 of 8", False)


def test_a_parameter_that_is_refused_is_refused_by_a_dry_run_too(tmp_path):
    folder = write_project(tmp_path / "project")
    done = CliRunner().invoke(cli, ["train-student", "--dry-run", "--project", str(folder), "-S", "train.setps=5"])
    assert (done.exit_code, "did you mean steps?" in done.output) == (2, True)


@pytest.mark.parametrize("stage", ["corpus", "cache-teacher"])
def test_it_loads_no_tensor_library(tmp_path, stage):
    program = (
        "import sys\nfrom pipeline.cli import cli\n"
        f"cli.main([{stage!r}, '--dry-run', '--project', {str(write_project(tmp_path))!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True)


def pipeline(project, *arguments):
    done = CliRunner().invoke(cli, [*arguments, "--project", str(project.folder)])
    assert done.exit_code == 0, done.output


def test_without_a_teacher_a_finished_cache_is_still_seen(copy_cached):  # noqa: F811  a fixture
    project = copy_cached()
    for folder in (project.artefacts.teacher, project.artefacts.tokens):
        shutil.rmtree(folder)
    said = dry(project.folder, "cache-teacher")
    assert (said["reads models/teacher"], said["shards missing"]) == ("missing", 0)
