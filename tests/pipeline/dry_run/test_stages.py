import subprocess
import sys

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from tests.pipeline.dry_run.looking import dry
from tests.tiny import ROOT, write_project

STAGES = ("corpus", "tokenize", "teacher", "cache-teacher", "init-student", "train-student", "evaluate", "report")


def test_in_an_empty_project_every_stage_says_that_its_input_is_missing_and_ends_well(tmp_path):
    folder = write_project(tmp_path / "project")
    said = {stage: dry(folder, stage) for stage in STAGES}
    assert said["corpus"] == {"reads": "1 files, 0.0 megabytes", "writes data/documents": "missing"}
    assert said["tokenize"]["reads data/documents"] == "missing; run: pipeline corpus"
    assert said["teacher"]["trains"] == "8 steps of 16 sequences (8 in float32)"
    assert "there are no tokens" in said["cache-teacher"]["would compute"]
    assert said["train-student"]["reads cache/current"] == "missing; run: pipeline cache-teacher"
    assert said["evaluate"]["reads models/student"] == "missing; run: pipeline train-student"
    assert said["report"]["writes report/index.html"] == "missing"


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
