import csv
import json

import numpy as np
import pytest

from stages import cache_teacher
from stages.cache_figures import COLUMNS, ENTROPY_EDGES, shard_figures
from storage import CacheReader


@pytest.fixture
def cached(make_project):
    project = make_project(cache={"hidden": None, "logits": "float32", "shard_tokens": 128, "temperatures": [1.0, 2.0]})
    project.run(cache_teacher)
    return project


def run_json(project):
    """Both files as one."""
    artefacts = project.artefacts
    return {**json.loads(artefacts.cache_run.read_text()), **json.loads(artefacts.cache_figures.read_text())}


def train_rows(project):
    """Over all train positions: masked (N,), logsumexp and entropy (N, 2) at T = 1 and 2, the cached logits (N, k)."""
    reader = CacheReader(project.artefacts.cache)
    shards = [reader.load(shard) for shard in reader.shards("train")]
    masked = np.concatenate([shard.masked[shard.row_token] for shard in shards]) == 1
    stat = np.concatenate([shard.stat for shard in shards])
    logits = np.concatenate([shard.logits["top_logits"] for shard in shards]).astype(np.float64)
    return masked, stat[:, [1, 3]], stat[:, [2, 4]], logits


def test_the_figures_are_means_over_the_cached_positions_masked_and_unmasked_apart(cached):
    found = run_json(cached)
    masked, logsumexp, entropy, logits = train_rows(cached)
    for name, rows in {"masked": masked, "unmasked": ~masked}.items():
        assert found[name]["positions"] == rows.sum()
        for i, temperature in enumerate((1.0, 2.0)):
            kept = np.exp(logits[rows] / temperature - logsumexp[rows, i, None]).sum(-1)
            assert found[name]["entropy"][str(temperature)] == pytest.approx(entropy[rows, i].mean(), abs=2e-4)
            assert found[name]["retained_mass"][str(temperature)] == pytest.approx(kept.mean(), abs=2e-4)
    everywhere = np.exp(logits - logsumexp[:, :1]).sum(-1).mean()
    assert found["retained_mass"]["1.0"] == pytest.approx(everywhere, abs=2e-4)


def test_the_histograms_are_shares_of_the_positions(cached):
    with cached.artefacts.cache_distributions.open() as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    groups = {(row["figure"], row["temperature"], row["positions"]) for row in rows}
    assert len(groups) == 2 * 2 * 2
    masked, _, entropy, _ = train_rows(cached)
    expected = np.histogram(entropy[masked, 0], ENTROPY_EDGES)[0] / masked.sum()
    found = [float(row["share"]) for row in rows if tuple(row.values())[:3] == ("entropy", "1.0", "masked")]
    assert found == pytest.approx(expected, abs=1e-5)
    for group in groups:
        shares = [float(row["share"]) for row in rows if tuple(row.values())[:3] == group]
        assert sum(shares) == pytest.approx(1, abs=1e-3)


def test_the_bytes_by_array_add_up_to_the_bytes_per_position(cached):
    found = run_json(cached)
    assert {"hidden", "top_logits", "top_ids", "stat", "metadata"} <= set(found["bytes_per_position"])
    assert sum(found["bytes_per_position"].values()) == pytest.approx(found["bytes_per_train_position"], abs=0.1)


def test_masked_positions_alone_have_no_figures_of_the_others(make_project):
    project = make_project(cache={"positions": "masked"})
    project.run(cache_teacher)
    found = run_json(project)
    assert found["unmasked"] == {}
    assert found["masked"]["positions"] == found["positions"]["train"]


def test_without_logits_there_is_entropy_and_no_retained_mass(make_project):
    project = make_project(cache={"logits": "none", "top_k": 0}, train={"kd_source": "hidden"})
    project.run(cache_teacher)
    found = run_json(project)
    assert found["retained_mass"] == {}
    assert found["masked"]["retained_mass"] == {}
    assert set(found["masked"]["entropy"]) == {"1.0", "2.0"}


def test_a_shard_without_masked_positions_says_nothing_of_them():
    class Targets:
        stat = np.zeros((3, 3), np.float32)
        top_logits = None

    figures = shard_figures(Targets(), np.zeros(3, bool), (1.0,))
    assert set(figures) == {"unmasked"}
    assert figures["unmasked"]["entropy"]["1.0"]["counts"][0] == 3
