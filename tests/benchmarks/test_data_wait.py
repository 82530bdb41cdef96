import json
import subprocess
import sys

import numpy as np

from tests.tiny import ROOT


def test_a_quick_run_prints_its_table_and_writes_its_ratios(tmp_path):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks/data_wait.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ratios"]
    assert set(found) == {
        f"data_wait_share_{preset}_{positions}" for preset in ("balanced", "small") for positions in ("all", "masked")
    }
    assert all(ratio in done.stdout for ratio in found)
    assert all(np.isfinite(value) and 0 <= value <= 1 for value in found.values())
