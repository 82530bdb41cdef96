"""The benchmark of stage one runs, and writes the ratios that it promises."""

import json
import subprocess
import sys

from tests.tiny import ROOT


def test_a_quick_run_prints_its_tables_and_writes_its_ratios(tmp_path):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / "cache_teacher.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ratios"]
    assert set(found) == {"stage_one_balanced_all", "stage_one_small_all", "stage_one_balanced_masked"}
    assert all(value > 0 for value in found.values())
    for said in (*found, "selection and coding", "memory beside the teacher", "bytes"):
        assert said in done.stdout
