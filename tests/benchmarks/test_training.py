"""The benchmarks of training run, and write the ratios that they promise."""

import json
import subprocess
import sys

import pytest

from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("name", "ratios", "said"),
    [
        ("loss", {"loss_memory", "loss_time", "loss_time_head"}, ("by plain", "sparse")),
        (
            "train_student",
            {
                "train_small_all_vs_online",
                "train_balanced_all_vs_online",
                "train_balanced_masked_vs_online",
                "train_small_masked_vs_mlm",
                "memory_vs_online",
            },
            ("waiting", "peak"),
        ),
        ("offline_vs_online", {"kl_balanced_vs_online", "kl_small_vs_online"}, ("calibration", "online, seed 1")),
        (
            "ablation",
            {"ablation_vs_online", "ablation_vs_online_without_cache", "cache_share"},
            ("FLOP limit of the ratio, through the head", "teacher's pass, cached"),
        ),
        (
            "relations",
            {"kl_relations_vs_recipe", "kl_both_vs_recipe", "mlm_both_vs_recipe"},
            ("the embedded default", "before training"),
        ),
    ],
)
def test_a_quick_run_prints_its_table_and_writes_its_ratios(tmp_path, name, ratios, said):
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ratios"]
    assert set(found) >= ratios
    assert all(value > 0 for value in found.values())
    assert all(words in done.stdout for words in said)
