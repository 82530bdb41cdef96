"""What a shell is given to complete with: asked for as a shell asks."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.tiny import ROOT, write_params

HEAVY = {"torch", "numpy", "stages", "storage", "transformers", "rich"}


def asked(folder, line):
    """What the program answers a bash that has `line` typed, its last word unfinished."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_PIPELINE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    program = (
        "import json, sys\n"
        "from pipeline.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    *answers, loaded = done.stdout.splitlines()
    assert not HEAVY & set(json.loads(loaded)), done.stderr
    return [answer.partition(",")[2] for answer in answers if answer]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pipeline cache-t", ["cache-teacher"]),
        ("pipeline train-student --dr", ["--dry-run"]),
        ("pipeline init-student ", ["half"]),
        ("pipeline compare --only MLM", ["MLM only"]),
        ("pipeline train-student -S train.weights.", ["train.weights.cos=", "train.weights.kd=", "train.weights.mlm="]),
        ("pipeline init minil", ["minilm"]),
        ("pipeline finetune ", []),
    ],
)
def test_commands_options_and_names_of_the_project_are_completed_without_loading_a_library(tmp_path, line, expected):
    write_params(tmp_path)
    assert asked(tmp_path, line) == expected


@pytest.mark.parametrize("text", [None, "train: [unfinished", "just text"])
def test_without_parameters_that_can_be_read_no_name_is_completed_and_nothing_breaks(tmp_path, text):
    if text is not None:
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert asked(tmp_path, "pipeline init-student ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_that_its_shell_accepts(shell):
    command = [sys.executable, "-m", "pipeline", "completion", shell]
    script = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "_PIPELINE_COMPLETE" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
