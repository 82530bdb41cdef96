"""Stage one as a job array: `--shards I/N`, here and at a root, finished by a run without it."""

import json

import pytest

from stages import cache_teacher
from stages.context import Artefacts, Context
from stages.errors import InputError
from storage import CacheReader, CacheWork, LockedError, Part
from storage.remote import finished_caches
from tests.stages.test_cache_teacher import published
from tests.stages.test_cache_teacher_at_root import Messages, tracked
from tests.storage.damage import flip_a_bit
from tests.storage.remote_roots import opened


def run(project, part=None, device="cpu", **more):
    artefacts = Artefacts(project=project.folder, **more)
    context = Context(artefacts=artefacts, device=device, progress=(messages := Messages()))
    cache_teacher.run(project.config, context, part=part)
    return messages


def computed(project):
    return json.loads(project.artefacts.cache_run.read_text())["shards_computed"]


def digest(project):
    return CacheReader(project.artefacts.cache).root_digest


def test_parts_in_any_order_and_a_plain_run_give_the_cache_of_one_process(make_project, cached):
    project = make_project()
    for number in (2, 1):
        run(project, Part(number, 2))
        assert not project.artefacts.cache.exists()
        assert not list(project.artefacts.cache_work.glob("*/manifest.json"))
        assert not project.artefacts.cache_run.exists()
    run(project)
    assert digest(project) == digest(cached)
    assert computed(project) == 0
    assert any("nothing to do" in said for said in run(project, Part(1, 2)).said)


def test_what_a_part_has_not_done_is_done_by_the_plain_run(make_project, cached):
    project = make_project()
    run(project, Part(1, 3))
    run(project)
    assert digest(project) == digest(cached)
    shards = CacheReader(cached.artefacts.cache).description.shard_ids()
    assert computed(project) == len(shards) - len(Part(1, 3).of_all(shards))


NOWHERE = "meta"
"""A device on which no teacher computes anything."""


def test_where_no_shard_is_missing_the_teacher_is_loaded_only_for_a_head_that_is_missing_or_damaged(
    make_project, cached
):
    project = make_project()
    for _ in range(2):
        run(project, Part(1, 1), device=NOWHERE if published(project) else "cpu")
    (head,) = project.artefacts.cache_work.glob("*/head.safetensors")
    flip_a_bit(head, 0)
    with pytest.raises(InputError, match="on meta tensors"):
        run(project, device=NOWHERE)
    flip_a_bit(head, 0)
    run(project, device=NOWHERE)
    assert digest(project) == digest(cached)


def test_a_part_is_refused_while_the_cache_is_held_by_a_coordinator(make_project, cached):
    project = make_project()
    description = CacheReader(cached.artefacts.cache).description
    with CacheWork.open(project.artefacts.cache_work, description), pytest.raises(LockedError):
        run(project, Part(1, 2))
    with CacheWork.open(project.artefacts.cache_work, description, Part(1, 2)), pytest.raises(LockedError):
        run(project)


def test_parts_on_different_machines_meet_at_the_root(make_project, cached, memory):
    for number in (1, 2):
        project = make_project()
        run(project, Part(number, 2), root=memory)
        assert not project.artefacts.tracked_manifest.exists()
        assert not list(project.artefacts.cache_work.rglob("*.zarr"))
    assert not finished_caches(opened(memory))
    project = make_project()
    run(project, root=memory)
    assert tracked(project) == digest(cached)
    assert computed(project) == 0
    assert any("nothing to do" in said for said in run(make_project(), Part(1, 2), root=memory).said)
