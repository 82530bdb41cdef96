"""The benchmark of tokenizing runs, and writes the ratios that it promises."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.stages.tiny_tokenizers import WORDS, bert_like
from tests.tiny import ROOT


def test_a_quick_run_prints_its_tables_and_writes_its_ratios(tmp_path):
    """On a text of its own, in the place of the articles."""
    for folder in ("wiki_en", "vocab"):
        (tmp_path / folder).mkdir()
    texts = [" ".join(WORDS * 5) for _ in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "wiki_en" / "train-00000.parquet")
    vocabulary = sorted(bert_like().get_vocab().items(), key=lambda entry: entry[1])
    (tmp_path / "vocab" / "bert-base-uncased-vocab.txt").write_text("".join(f"{name}\n" for name, _ in vocabulary))
    file = tmp_path / "ratios.json"
    command = [sys.executable, ROOT / "benchmarks" / "tokenize_corpus.py", "--quick", "--json", file]
    environment = {**os.environ, "TEACHER_CACHE_DATA": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())["ratios"]
    memory = {"tokenize_memory_4x", "tokenize_memory_16x_vs_4x"}
    assert set(found) == {"tokenize_vs_bare", "tokenize_vs_bare_one_core"} | memory
    assert all(ratio in done.stdout for ratio in found)
    assert all(np.isfinite(value) and value > 0 for value in found.values())
