"""The benchmark of several worker processes runs, and writes the ratio that it promises."""

import json
import subprocess
import sys

from tests.tiny import ROOT


def test_a_quick_run_prints_its_table_and_writes_its_ratio(tmp_path):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / "scaling.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "scaling_2" in done.stdout
    assert json.loads(file.read_text())["ratios"]["scaling_2"] > 0
