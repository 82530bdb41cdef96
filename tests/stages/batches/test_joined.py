"""Batches of several caches at once."""

import shutil

import pytest
import torch

from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, Wanted, labelled_rows
from stages.batches.joined import OF_ALL, JoinedBatches, joined, of_further
from storage import CacheReader
from tests.stages.conftest import Project
from tests.stages.ensembles import prepare, with_second

WANTED = Wanted(hidden=True, logits=True)


@pytest.fixture(scope="module")
def readers(tokenized, tmp_path_factory):
    """Of two teachers' caches."""
    folder = shutil.copytree(tokenized, tmp_path_factory.mktemp("joined") / "project")
    project = Project(folder, **with_second(cache={"positions": "sampled", "position_fraction": 0.5}))
    prepare(project)
    return [CacheReader(a.cache) for a in (project.artefacts, project.artefacts.of_teacher("second"))]


def planned(reader, **changes):
    plan = BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), 8, 0, 1)
    settings = {"micro_batch_size": 4, "first_step": 0, "last_step": 14, **changes}
    return PlannedBatches(reader, plan, wanted=WANTED, **settings)


def test_each_batch_is_that_of_the_main_cache_with_the_other_teachers_targets_beside(readers):
    main, other = (list(planned(reader)) for reader in readers)
    both = list(JoinedBatches(planned(readers[0]), {"second": planned(readers[1])}))
    assert len(both) == len(main) == len(other)
    for batch, of_main, of_other in zip(both, main, other, strict=True):
        assert all(torch.equal(batch[name], of_main[name]) for name in of_main)
        found = of_further(batch, "second")
        assert found.keys() == of_other.keys()
        assert all(torch.equal(found[name], of_other[name]) for name in of_other)
        assert not torch.equal(batch["hidden"], batch["second/hidden"])


def test_two_ranks_get_the_same_rows_of_every_cache(readers):
    for rank in range(2):
        settings = {"rank": rank, "world_size": 2, "micro_batch_size": 2}
        batches = JoinedBatches(planned(readers[0], **settings), {"second": planned(readers[1], **settings)})
        assert sum(1 for _ in batches) == 28


def test_the_rows_that_are_predicted_are_taken_of_every_teacher(readers):
    batch = next(iter(JoinedBatches(planned(readers[0]), {"second": planned(readers[1])})))
    count = len(batch["labels"])
    few = labelled_rows(batch)
    assert len(few["hidden"]) == len(few["second/hidden"]) == count < len(batch["hidden"])
    assert torch.equal(few["second/hidden"], batch["second/hidden"][:count])


def test_leaving_early_ends_what_reads_ahead_of_every_cache(readers, threads_left):
    iterator = iter(JoinedBatches(planned(readers[0]), {"second": planned(readers[1])}))
    next(iterator)
    assert len(threads_left()) == 2
    iterator.close()
    assert threads_left() == []


def test_rows_of_other_tokens_are_never_joined(readers):
    first, second = (next(iter(planned(reader))) for reader in readers)
    moved = second | {"row_index": second["row_index"] + 1}
    with pytest.raises(AssertionError, match="second"):
        joined(first, {"second": moved})
    assert set(OF_ALL) < joined(first, {"second": second}).keys()
