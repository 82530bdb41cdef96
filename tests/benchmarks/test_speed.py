"""The benchmark of inference runs, and writes the ratios that it promises."""

import json
import subprocess
import sys

from tests.tiny import ROOT


def test_a_quick_run_prints_its_tables_and_writes_its_ratios(tmp_path):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / "speed.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratios = json.loads(file.read_text())["ratios"]
    assert ratios.keys() == {"latency_torch", "throughput_8_torch", "throughput_32_torch"}
    assert all(value > 0 for value in ratios.values())
    assert "sentences of README.txt" in done.stdout
