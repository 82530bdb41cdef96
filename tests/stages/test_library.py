"""docs/library.md says how a loop of one's own uses a cache: its code is run, in its order, where a cache is."""

import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from stages import cache_teacher, init_student, library
from stages.batches import Wanted
from stages.library import BatchPlan, PlannedBatches, held_out_figures
from storage import CacheReader
from tests.stages.conftest import Project
from tests.tiny import ROOT

DOCUMENT = ROOT / "docs" / "library.md"
CODE = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(params=["exact", "balanced"])
def folder(request, cached, tokenized, tmp_path, monkeypatch):
    """A project with a cache in one of the codings, to work in."""
    if request.param == "exact":
        shutil.copytree(cached.folder, tmp_path / "project")
    else:
        project = Project(shutil.copytree(tokenized, tmp_path / "project"), cache={"preset": request.param})
        project.run(cache_teacher)
        project.run(init_student, "half")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_the_code_of_the_document_runs_and_its_student_comes_nearer_to_the_teacher(folder, capsys):
    cache, names = CacheReader("cache/current"), {}
    before = AutoModelForMaskedLM.from_pretrained("models/student-init/half")
    for block in CODE:
        exec(compile(block, str(DOCUMENT), "exec"), names)
    after = AutoModelForMaskedLM.from_pretrained("models/my-student")
    at_first, at_last = (held_out_figures(student, cache, "validation", batch_size=8) for student in (before, after))
    assert at_last["kl_all"] < 0.8 * at_first["kl_all"]
    assert at_last["hidden_cosine"] > at_first["hidden_cosine"]
    assert str(at_last) in capsys.readouterr().out
    assert torch.isfinite(names["sparse"].total)
    assert names["features"].grad.abs().sum() > 0
    top = cache.load(cache.shards("train")[0])
    np.testing.assert_allclose(names["logits"], top.decoded_logits(cache.description.splits["train"].layout), atol=1e-3)
    np.testing.assert_array_equal(names["hidden"], top.decoded_hidden(cache.description.splits["train"].layout))
    assert names["batch"]["input_ids"].shape[0] == 3


def test_the_names_of_the_library_are_there_and_in_the_document():
    text = DOCUMENT.read_text(encoding="utf-8")
    types = {"Batch", "DistillationLoss", "TargetDecoder", "Targets", "labelled_first"}  # what others give or take
    assert all(hasattr(library, name) for name in library.__all__)
    assert {name for name in library.__all__ if name not in text} <= types


def test_a_plan_of_a_cache_visits_each_of_its_training_sequences_once_an_epoch(cached):
    reader = CacheReader(str(cached.artefacts.cache))
    plan = BatchPlan.of(reader.description, batch_size=8, seed=0)
    wanted = Wanted(hidden=False, logits=False)
    batches = PlannedBatches(
        reader, plan, wanted=wanted, micro_batch_size=4, first_step=0, last_step=plan.steps_per_epoch
    )
    sequences = sum(len(batch["input_ids"]) for batch in batches)
    assert sequences == reader.description.splits["train"].sequences // 8 * 8
