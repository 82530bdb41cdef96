"""The codec ladder on a tiny cache: it runs, its files are there, and its figures are in an order that must hold."""

import importlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from stages import cache_teacher, init_student
from storage import CacheReader
from tests.tiny import ROOT


@pytest.fixture
def project(make_project):
    project = make_project(cache={"preset": "lossless"})
    project.run(cache_teacher)
    project.run(init_student, "half")
    return project


@pytest.fixture
def ladder(monkeypatch):
    """`ladder("figures")`: a module of the benchmark."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"ladder.{name}")


def by_name(content):
    return {entry["name"]: entry for entry in content["rungs"] if entry["tail"] in (None, "rest")}


def ascending(values):
    return all(a < b for a, b in itertools.pairwise(values))


def test_the_ladder_of_a_tiny_cache_is_written_as_json_table_and_picture(project, tmp_path):
    files = {name: tmp_path / name for name in ("ladder.json", "ladder.md", "ladder.svg")}
    command = [sys.executable, ROOT / "benchmarks" / "codec_ladder.py", project.artefacts.cache, "--quick"]
    options = ["--json", files["ladder.json"], "--markdown", files["ladder.md"], "--picture", files["ladder.svg"]]
    done = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files["ladder.svg"].read_text().count("</svg>") == 1
    assert "| balanced |" in files["ladder.md"].read_text()
    content = json.loads(files["ladder.json"].read_text())
    assert all(np.isfinite(value) for value in content["ratios"].values())
    found = by_name(content)

    def kl(name):
        return found[name]["kl"]["1.0"]["all"]

    def gradient(name):
        return found[name]["gradient"]["2.0"]["all"]

    assert kl("lossless") == pytest.approx(0, abs=1e-12)
    hidden = ["hidden float16", "hidden bfloat16", "hidden int8, a scale per row"]
    assert ascending([kl(name) for name in hidden])
    assert ascending([gradient(name) for name in ("lossless", *hidden[1:], "top-8, grid 1/8")])
    assert ascending([found[f"top-{k}, grid 1/8"]["total_bytes"] for k in (8, 16, 32, 64)])
    assert ascending([found[f"top-{k}, grid 1/8"]["mass_kept"]["2.0"]["masked"] for k in (8, 16, 32, 64)])
    assert ascending([-kl(f"top-{k}, grid 1/8") for k in (8, 16, 32, 64)])
    assert ascending([found[name]["total_bytes"] for name in ("balanced", "exact", "lossless")])
    for draws in ("25 draws", "50 draws", "top-8 + 8 draws outside"):
        one, mean = (found[draws]["averaged"][sets]["all"] for sets in ("1", "16"))
        assert mean == pytest.approx(one / 4, rel=0.4)
    renormalised = next(entry for entry in content["rungs"] if entry["tail"] == "renormalise")
    assert renormalised["kl"]["1.0"]["all"] is None


def test_the_closed_form_of_a_tail_is_the_dense_sum(project, ladder, tmp_path):
    figures, rungs, stored, teachers = (ladder(name) for name in ("figures", "rungs", "stored", "teacher"))
    reader = CacheReader(project.artefacts.cache)
    description = reader.description
    teacher = teachers.Teacher.of(reader, 64)
    said = teachers.Said.by(teacher)
    chosen = rungs.rungs(layer=2, hidden_size=32, vocabulary_size=description.vocabulary_size)
    alike = torch.full_like(teacher.unigram, 1 / len(teacher.unigram))
    for rung in chosen:
        if rung.family not in ("top_k", "threshold"):
            continue
        shard = stored.store(tmp_path, description, rung, teacher, said)
        for index, temperature in enumerate(rungs.TEMPERATURES):
            kept = figures._truncated(rung, shard, index)
            log_p = (teacher.head.logits(teacher.hidden).double() / temperature).log_softmax(-1)
            for tail, spread in (("rest", alike), ("unigram", teacher.unigram)):
                log_q = kept.spread_out(spread).double()
                assert log_q.logsumexp(-1).abs().max() < 1e-5
                dense = (log_p.exp() * (log_p - log_q)).sum(-1)
                found = kept.divergence(said, teacher.unigram, tail)
                torch.testing.assert_close(found, dense, atol=1e-5, rtol=1e-4)
            assert (kept.bucket_divergence(said) <= kept.divergence(said, teacher.unigram, "rest") + 1e-9).all()
