"""The benchmarks of stage one run, and write the ratios that they promise."""

import json
import subprocess
import sys

import pytest

from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("name", "ratios", "said"),
    [
        (
            "cache_teacher",
            {"stage_one_balanced_all", "stage_one_small_all", "stage_one_balanced_masked"},
            ("selection and coding", "memory beside the teacher", "bytes"),
        ),
        ("selection", {"selection_statistics", "selection_top_k", "selection_draws"}, ("our draws",)),
    ],
)
def test_a_quick_run_prints_its_tables_and_writes_its_ratios(tmp_path, name, ratios, said):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ratios"]
    assert set(found) == ratios
    assert all(value > 0 for value in found.values())
    assert all(words in done.stdout for words in (*found, *said))
