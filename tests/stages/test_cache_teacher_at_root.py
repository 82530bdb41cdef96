"""Stage one into a remote root, and the completion of a cache that was fetched in part."""

import json
import shutil
import sys

import pytest

from stages import cache_teacher
from stages.context import Artefacts, Context, Silent
from stages.errors import Interrupted
from storage import CacheReader, verify_cache
from storage.errors import RemoteError
from storage.remote import finished_caches, pull, push
from storage.remote.work import UPLOADS
from tests.stages.runners import StopsIn
from tests.storage.damage import flip_a_bit
from tests.storage.fault_proxy import Fault
from tests.storage.remote_roots import killed_when, opened, rewrite

RUN_STAGE = """
import sys, yaml
from pathlib import Path
from stages import cache_teacher
from stages.config import load_config
from stages.context import Artefacts, Context
folder = Path(sys.argv[1])
config = load_config(yaml.safe_load((folder / "params.yaml").read_text()))
cache_teacher.run(config, Context(artefacts=Artefacts(project=folder, root=sys.argv[2])))
"""


class Messages(Silent):
    """Keeps what a stage says, and how many shards lay in the work folder at each report."""

    def __init__(self, work=None):
        self.said, self.work, self.most, self.advances = [], work, 0, 0

    def message(self, text):
        self.said.append(text)

    def advance(self, _amount=1, **_figures):
        self.advances += 1
        if self.work:
            self.most = max(self.most, len(list(self.work.glob("*/shards/[!.]*"))))


def at_root(project, url, **more):
    return Context(artefacts=Artefacts(project=project.folder, root=url), **more)


def run_at(url, project, *, verify=False, **more):
    cache_teacher.run(project.config, at_root(project, url, **more), verify=verify)


def digest(project):
    return CacheReader(project.artefacts.cache).root_digest


def tracked(project):
    return json.loads(project.artefacts.tracked_manifest.read_text())["root_digest"]


def computed(project):
    return json.loads(project.artefacts.cache_run.read_text())["shards_computed"]


def without_time(file):
    return {name: value for name, value in json.loads(file.read_text()).items() if name != "seconds"}


def test_a_cache_made_at_a_root_is_the_local_one_and_leaves_its_manifest_and_figures_here(make_project, cached, s3):
    url, proxy = s3
    project = make_project()
    watch = Messages(project.artefacts.cache_work)
    run_at(url, project, progress=watch)
    assert tracked(project) == digest(cached)
    assert 0 < watch.most <= UPLOADS + 3 < computed(project)  # one is written, one computed, one taken in
    assert not project.artefacts.cache.exists()
    assert not list(project.artefacts.cache_work.rglob("*.zarr"))
    for name in ("figures.json", "distributions.csv", "resolved-config.json"):
        assert (project.folder / "cache" / name).read_bytes() == (cached.folder / "cache" / name).read_bytes(), name
    assert without_time(project.artefacts.cache_run) == without_time(cached.artefacts.cache_run)
    (fingerprint,) = finished_caches(opened(url))
    pull(opened(url), fingerprint, project.artefacts.cache, project.artefacts.cache_work)
    assert verify_cache(project.artefacts.cache, deep=True) == verify_cache(cached.artefacts.cache)

    fresh = make_project()  # another clone: nothing but the root knows of the cache
    proxy.reset()
    run_at(url, fresh, progress=(messages := Messages()))
    assert proxy.asked("PUT") == 0
    assert any(f"{url} already holds this cache" in said for said in messages.said)
    assert fresh.artefacts.tracked_manifest.read_bytes() == project.artefacts.tracked_manifest.read_bytes()
    assert computed(fresh) == 0
    assert (fresh.folder / "cache" / "figures.json").is_file()


def test_failures_on_the_way_are_survived(make_project, cached, s3):
    url, proxy = s3
    faults = [Fault("drop", "PUT", "/hidden/"), Fault("500", "PUT", "/manifest/"), Fault("500", "GET", "?list-type")]
    proxy.faults.extend(faults)
    project = make_project()
    run_at(url, project)
    assert [fault.times for fault in faults] == [0, 0, 0]
    assert tracked(project) == digest(cached)


def test_an_object_that_the_store_holds_in_half_is_named_and_sent_again_without_computing(make_project, cached, s3):
    url, proxy = s3
    project = make_project()
    proxy.faults.append(Fault("cut", "PUT", "test-v0-000000.zarr/stat"))  # of the last shard
    with pytest.raises(
        RemoteError, match=rf"^shard test-v0-000000: {url}/.*/stat/.* holds \d+ bytes after it was sent"
    ):
        run_at(url, project)
    proxy.reset()
    run_at(url, project)
    assert tracked(project) == digest(cached)
    assert computed(project) == 0


def test_a_killed_job_that_restarts_on_an_empty_machine_computes_only_what_is_missing_at_the_root(
    make_project, cached, s3
):
    url, proxy = s3
    project = make_project()
    killed_when(
        Fault("hold", "PUT", "/manifest/", after=4), proxy, [sys.executable, "-c", RUN_STAGE, project.folder, url]
    )
    shards = CacheReader(cached.artefacts.cache).description.shard_ids()
    there = sum("/manifest/" in name for name in opened(url).sizes())
    assert 0 < there < len(shards)
    assert not finished_caches(opened(url))
    shutil.rmtree(project.artefacts.cache_work)
    run_at(url, project)
    assert computed(project) == len(shards) - there
    assert tracked(project) == digest(cached)


def test_a_stopped_job_says_where_its_shards_are_and_goes_on(make_project, cached, memory):
    project = make_project()
    watch = Messages()
    with pytest.raises(Interrupted, match=memory):
        run_at(memory, project, progress=watch, should_stop=lambda: watch.advances >= 3)
    run_at(memory, project)
    assert 0 < computed(project) < len(CacheReader(cached.artefacts.cache).description.shard_ids())
    assert tracked(project) == digest(cached)


def test_a_cache_that_is_whole_here_is_copied_to_the_root_and_not_computed(copy_cached, memory):
    project = copy_cached()
    run_at(memory, project, progress=(messages := Messages()))
    assert any("it is copied to" in said for said in messages.said)
    assert tracked(project) == digest(project)
    assert len(finished_caches(opened(memory))) == 1


def test_a_shard_that_a_finished_root_has_lost_is_computed_again(make_project, cached, memory):
    done = push(cached.artefacts.cache, opened(memory), cached.artefacts.cache_work)
    rewrite(memory, f"{done.fingerprint}/shards/train-v0-000001.zarr/zarr.json", lambda data: data[:-1])
    project = make_project()
    run_at(memory, project)
    assert computed(project) == 1
    assert tracked(project) == digest(cached)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_of_some_splits_is_completed_and_its_good_shards_are_kept(copy_cached, memory, damaged):
    project = copy_cached()
    artefacts, whole = project.artefacts, digest(project)
    shards = CacheReader(artefacts.cache).description.shard_ids()
    done = push(artefacts.cache, opened(memory), artefacts.cache_work)
    pull(opened(memory), done.fingerprint, artefacts.cache, artefacts.cache_work, splits=["train"])
    assert digest(project) != whole
    if damaged:
        flip_a_bit(next((artefacts.cache / "shards").glob("train-*/hidden/c/0/0/0")), 5)
    project.run(cache_teacher)
    assert digest(project) == whole
    assert computed(project) == sum(shard.split != "train" for shard in shards) + damaged
    verify_cache(artefacts.cache, deep=True)


def flip(data):
    """The same size, one bit changed."""
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def test_a_damaged_chunk_at_a_finished_root_is_found_by_reading_back_and_computed_again(make_project, cached, s3):
    url, proxy = s3
    project = make_project()
    run_at(url, project)
    (fingerprint,) = finished_caches(opened(url))
    root = opened(url).below(fingerprint)
    good = {name: root.record(name) for name in root.sizes()}
    chunk = next(name for name in good if "train-v0-000001.zarr/hidden/c/" in name)
    for name in (chunk, "head.safetensors"):
        rewrite(url, f"{fingerprint}/{name}", flip)
    run_at(url, project, progress=(messages := Messages()))
    assert any("nothing to do" in said for said in messages.said)
    assert root.record(chunk) != good[chunk]

    run_at(url, project, progress=(messages := Messages()), verify=True)
    assert any(said.startswith("train-v0-000001 is computed again: ") and chunk in said for said in messages.said)
    assert computed(project) == 1
    assert tracked(project) == digest(cached)
    assert {name: root.record(name) for name in root.sizes()} == good

    before = project.artefacts.cache_run.read_bytes()
    proxy.reset()
    run_at(url, project, progress=(messages := Messages()), verify=True)
    assert proxy.asked("PUT") == 0
    assert messages.said[-1] == f"{url}/{fingerprint} is whole; root digest {tracked(project)[:12]}"
    assert project.artefacts.cache_run.read_bytes() == before


def test_reading_back_uses_a_whole_cache_here_instead_of_the_teacher(copy_cached, memory):
    project = copy_cached()
    run_at(memory, project)
    (fingerprint,) = finished_caches(opened(memory))
    root = opened(memory).below(fingerprint)
    chunk = next(name for name in root.sizes() if "train-v0-000001.zarr/hidden/c/" in name)
    good = root.record(chunk)
    rewrite(memory, f"{fingerprint}/{chunk}", flip)
    run_at(memory, project, verify=True)
    assert root.record(chunk) == good
    verify_cache(project.artefacts.cache)


def test_reading_back_stops_when_asked(make_project, cached, memory):
    project = make_project()
    push(cached.artefacts.cache, opened(memory), cached.artefacts.cache_work)
    stop = StopsIn("read back what is at the root")
    with pytest.raises(Interrupted, match=rf"every shard that is whole is kept in {memory}"):
        run_at(memory, project, verify=True, progress=stop, should_stop=stop.should_stop)
    run_at(memory, project, verify=True)
    assert tracked(project) == digest(cached)
