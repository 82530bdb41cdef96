"""Readers of caches in several layouts."""

import dataclasses
import shutil
import threading

import pytest

from stages import cache_teacher
from stages.batches import Wanted, decoder_for, to_batch
from storage import CacheReader
from tests.stages.conftest import Project
from tests.storage.build import LAYOUTS, build_cache, make_description

EVERYTHING = Wanted(hidden=True, logits=True, draws=True, layers=(0, 1, 2), attention=("queries", "keys", "values"))
RUNGS = LAYOUTS | {
    "odd_step": dataclasses.replace(LAYOUTS["balanced"], grid_step=0.1),
    "odd_step_ragged": dataclasses.replace(LAYOUTS["threshold"], grid_step=0.3),
    "bfloat16_layers": dataclasses.replace(LAYOUTS["hidden_only"], hidden="bfloat16"),
}
"""Layouts of which every coding has one or more."""


@pytest.fixture(scope="package", params=["lossless", "exact", "balanced"])
def reader(request, tokenized, tmp_path_factory):
    """Of what stage one made."""
    folder = tmp_path_factory.mktemp("cached") / "project"
    shutil.copytree(tokenized, folder)
    project = Project(folder, cache={"preset": request.param, "top_k": 16})
    project.run(cache_teacher)
    return CacheReader(project.artefacts.cache)


def first_shard(folder, layout, objective="masked"):
    """A shard with random content: its arrays, its batch and its decoder."""
    description = dataclasses.replace(make_description(layout), objective=objective)
    reader = CacheReader(build_cache(folder, description))
    arrays = reader.load(reader.shards("train")[0])
    batch = to_batch(arrays, pad_id=0, wanted=EVERYTHING, objective=objective)
    return arrays, batch, decoder_for(reader.description, "train")


@pytest.fixture(params=RUNGS)
def rung(request, tmp_path):
    """`first_shard` in one of the layouts."""
    return first_shard(tmp_path, RUNGS[request.param])


@pytest.fixture
def threads_left():
    """A function that gives the threads that make batches ahead and have begun with this test."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name == "batches ahead" and t not in before]
