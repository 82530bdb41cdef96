"""Caches of format 1 as they were written on 2026-11-21 (`answers`, `attention`, `classes`: 2026-11-26): they stay readable.

`python -m tests.storage.golden` made them and must not be run again: a new rung gets a new golden cache beside these.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from storage import CacheReader, verify_cache
from tests.storage.golden import decoded

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir() and (path / "manifest.json").is_file())


def test_there_is_a_golden_cache_of_every_kind_of_array():
    assert NAMES == ["answers", "attention", "balanced", "classes", "tail", "threshold"]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_cache_is_whole_and_reads_back_the_recorded_values(name):
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    verify_cache(GOLDEN / name)
    reader = CacheReader(GOLDEN / name)
    assert reader.description.fingerprint == expected["fingerprint"]
    assert reader.root_digest == expected["root_digest"]
    assert reader.counts == expected["counts"]
    for shard in reader.description.shard_ids():
        found = decoded(reader, shard)
        assert set(found) == set(expected["sums"][str(shard)])
        for array, value in expected["sums"][str(shard)].items():
            assert np.isclose(found[array], value, rtol=1e-6), (shard, array)
