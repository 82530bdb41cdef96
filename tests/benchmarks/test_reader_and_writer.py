"""The benchmarks of the reader and the writer run, and write the ratios that they promise."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        (
            "reader",
            {
                "reader_vs_blob",
                "reader_vs_blob_reused",
                "reader_zarrs_vs_blob",
                "reader_vs_random",
                "reader_vs_npy",
                "reader_vs_parquet",
            },
        ),
        ("writer", {"writer_vs_blob", "writer_vs_blob_from_targets", "write_amplification"}),
    ],
)
def test_a_quick_run_prints_its_table_and_writes_its_ratios(tmp_path, name, ratios):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(ratio in done.stdout for ratio in ratios)
    found = json.loads(file.read_text())["ratios"]
    assert set(found) == ratios
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    if name == "writer":  # not a time: what was written is counted
        assert found["write_amplification"] <= 1.02
