"""Writing a cache to a remote root: the bytes of a local one, little room here, and a resume from what is there."""

import json
import shutil

import pytest

from storage import CacheReader, CacheWork, MismatchError, verify_cache
from storage.errors import RemoteError
from storage.remote import RemoteWork, finished_at, finished_caches, pull, push
from storage.remote.work import UPLOADS
from tests.storage.build import MASKED, add_files, build_cache, fill, make_description, make_targets, publish
from tests.storage.fault_proxy import Fault
from tests.storage.remote_roots import opened, rewrite

DESCRIPTION = make_description(MASKED, shards=3)
FINGERPRINT = DESCRIPTION.fingerprint
SHARDS = DESCRIPTION.shard_ids()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same cache, made in a folder; never changed."""
    return build_cache(tmp_path_factory.mktemp("local"), DESCRIPTION)


@pytest.fixture
def work_at(tmp_path):
    """A function that opens the work of this cache at a root."""

    def open_at(url, description=DESCRIPTION, **options):
        return RemoteWork.open_at(opened(url), tmp_path / "work", description, **options)

    return open_at


@pytest.fixture
def tracked(tmp_path):
    """Where the manifest is kept."""
    return tmp_path / "cache" / "manifest.json"


def whole_at(url):
    """The shards whose manifest is at the root."""
    there = opened(url).below(FINGERPRINT).sizes()
    return {shard for shard in SHARDS if f"manifest/{shard}.json" in there}


def arrays_in(work):
    return sorted(path.name for path in (work.folder / "shards").glob("[!.]*"))


def chunk_of(shard, local):
    (chunk,) = [path for path in (local / f"shards/{shard}.zarr/hidden/c").rglob("*") if path.is_file()]
    return chunk.relative_to(local).as_posix()


def flip(data):
    """The same size, one bit changed."""
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def contents(url):
    """Every file of the cache at the root, with its SHA-256."""
    there = opened(url).below(FINGERPRINT)
    return {name: there.record(name) for name in there.sizes()}


def publish_as_on_another_device(work, shard):
    return work.publish(shard, make_targets(work.description, shard), {"device": "cuda"}, {})


def write(work, tmp_path, tracked):
    """All that is missing, and the end; the root digest."""
    fill(work, tmp_path)
    return work.finish(tracked)


def test_a_cache_written_to_a_root_has_the_bytes_of_one_in_a_folder(url, work_at, local, tracked, tmp_path):
    with work_at(url) as work:
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert list(finished_caches(opened(url))) == [FINGERPRINT]
    assert tracked.read_bytes() == (local / "manifest.json").read_bytes()
    assert not work.folder.exists()
    pull(opened(url), FINGERPRINT, tmp_path / "pulled", tmp_path / "pull-work")
    assert verify_cache(tmp_path / "pulled", deep=True) == verify_cache(local)


def test_only_the_shards_under_way_lie_here(memory, work_at, tmp_path):
    description = make_description(MASKED, shards=3 * UPLOADS)
    sent = []
    with work_at(memory, description, uploaded=sent.append) as work:
        add_files(work, tmp_path)
        for shard in work.missing():
            publish(work, shard)
            assert len(arrays_in(work)) <= UPLOADS + 1
        work.finish(tmp_path / "manifest.json")
    assert sorted(sent) == sorted(description.shard_ids())


def test_what_is_at_the_root_counts_though_the_work_folder_is_lost(memory, work_at, local, tracked, tmp_path):
    with work_at(memory) as work:
        for shard in work.missing()[:2]:
            publish(work, shard)
    done = whole_at(memory)
    shutil.rmtree(work.root)
    with work_at(memory) as work:
        assert set(work.missing()) == set(SHARDS) - done
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def test_shards_of_a_local_run_are_sent_and_not_computed(memory, work_at, local, tracked, tmp_path):
    with CacheWork.open(tmp_path / "work", DESCRIPTION) as work:
        for shard in SHARDS[:2]:
            publish(work, shard)
    with work_at(memory) as work:
        assert work.missing() == SHARDS[2:]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


@pytest.mark.parametrize("kind", ["500", "drop"])
def test_an_upload_that_fails_is_sent_again(kind, s3, work_at, local, tracked, tmp_path):
    url, proxy = s3
    fault = Fault(kind, "PUT", "/shards/", times=2)
    proxy.faults.append(fault)
    with work_at(url) as work:
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert fault.times == 0


@pytest.mark.parametrize(
    ("kind", "message"), [("500", "failed 4 times"), ("cut", r"holds \d+ bytes after it was sent")]
)
def test_a_shard_that_does_not_arrive_is_named_and_kept_here(kind, message, s3, work_at, local, tracked, tmp_path):
    url, proxy = s3
    shard = SHARDS[1]
    proxy.faults.append(Fault(kind, "PUT", chunk_of(shard, local), times=1000))
    with pytest.raises(RemoteError, match=rf"^shard {shard}: {url}/.*{message}"), work_at(url) as work:
        write(work, tmp_path, tracked)
    assert f"{shard}.zarr" in arrays_in(work)
    proxy.reset()
    with work_at(url) as work:
        assert shard not in work.missing()
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def test_an_object_that_was_truncated_at_the_root_is_found_at_the_end_and_its_shard_computed_again(
    memory, work_at, local, tracked, tmp_path
):
    name = chunk_of(SHARDS[0], local)

    def truncate(shard):
        if shard == SHARDS[0]:
            rewrite(memory, f"{FINGERPRINT}/{name}", lambda data: data[:-3])

    with pytest.raises(RemoteError, match=rf"{name} holds \d+ bytes"), work_at(memory, uploaded=truncate) as work:
        write(work, tmp_path, tracked)
    assert not finished_caches(opened(memory))
    told = {}
    with work_at(memory) as work:
        assert work.missing(told.__setitem__) == [SHARDS[0]]
        assert f"{name} holds" in told[SHARDS[0]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def other_shard(data):
    content = json.loads(data)
    content["teacher_saw"] = "0" * 64
    return json.dumps(content).encode()


@pytest.mark.parametrize("change", [lambda _data: b"{", other_shard])
def test_a_manifest_at_the_root_that_is_not_of_this_plan_vouches_for_nothing(
    change, memory, work_at, local, tracked, tmp_path
):
    push(local, opened(memory), tmp_path / "push")
    opened(memory).below(FINGERPRINT).remove("manifest.json")
    rewrite(memory, f"{FINGERPRINT}/manifest/{SHARDS[0]}.json", change)
    with work_at(memory) as work:
        assert work.missing() == [SHARDS[0]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def test_a_work_that_was_stopped_leaves_nothing_that_is_taken_for_finished_and_goes_on(
    memory, work_at, local, tracked, tmp_path
):
    class Stopped(Exception):
        pass

    def stop(_shard):
        raise Stopped

    with pytest.raises(Stopped), work_at(memory, uploaded=stop) as work:
        write(work, tmp_path, tracked)
    assert not finished_caches(opened(memory))
    with work_at(memory) as work:
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def test_another_cache_of_the_same_fingerprint_is_not_overwritten(memory, work_at, local, tracked, tmp_path):
    push(local, opened(memory), tmp_path / "push")
    before = opened(memory).below(FINGERPRINT).record("head.json")
    with work_at(memory) as work:
        fill(work, tmp_path)
        work.add_file("head.json", b'{"steps":[]}\n')
        with pytest.raises(MismatchError, match="another cache with the same fingerprint"):
            work.finish(tracked)
    assert opened(memory).below(FINGERPRINT).record("head.json") == before
    assert not tracked.exists()


def test_a_finished_cache_is_known_by_its_manifest_and_the_listing(memory, local, tmp_path):
    assert finished_at(opened(memory), DESCRIPTION) is None
    done = push(local, opened(memory), tmp_path / "push")
    found = finished_at(opened(memory), DESCRIPTION)
    assert found is not None
    assert found.root_digest == done.root_digest
    opened(memory).below(FINGERPRINT).remove(chunk_of(SHARDS[0], local))
    assert finished_at(opened(memory), DESCRIPTION) is None


def test_a_part_of_the_cache_at_the_root_is_refused(memory, local, tmp_path):
    push(local, opened(memory), tmp_path / "push")
    other = f"{memory}-part"
    pull(opened(memory), FINGERPRINT, tmp_path / "part", tmp_path / "pull-work", splits=["validation"])
    push(tmp_path / "part", opened(other), tmp_path / "push")
    with pytest.raises(MismatchError, match="a cache of validation only; expected train, validation"):
        finished_at(opened(other), DESCRIPTION)


@pytest.mark.parametrize("finished", [True, False])
def test_a_damaged_shard_whose_manifest_is_good_is_replaced_and_not_taken_as_vouched_for(
    finished, memory, work_at, local, tracked, tmp_path
):
    push(local, opened(memory), tmp_path / "push")
    good = contents(memory)
    rewrite(memory, f"{FINGERPRINT}/shards/{SHARDS[0]}.zarr/zarr.json", flip)
    if not finished:
        opened(memory).below(FINGERPRINT).remove("manifest.json")
    with work_at(memory) as work:
        assert work.missing() == [SHARDS[0]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert contents(memory) == good


def test_a_shard_with_other_bytes_is_refused_before_anything_of_a_finished_cache_is_changed(
    memory, work_at, local, tracked, tmp_path
):
    push(local, opened(memory), tmp_path / "push")
    opened(memory).below(FINGERPRINT).remove(chunk_of(SHARDS[0], local))
    before = contents(memory)
    with work_at(memory) as work:
        add_files(work, tmp_path)
        assert work.missing() == [SHARDS[0]]
        with pytest.raises(MismatchError) as refused:
            publish_as_on_another_device(work, SHARDS[0])
    for part in (f"shard {SHARDS[0]}", memory, "expected", 'device: "cpu" expected, "cuda" here', "another root"):
        assert part in str(refused.value)
    assert contents(memory) == before
    with work_at(memory) as work:
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest


def test_a_shard_with_other_bytes_that_lies_here_is_computed_again_for_a_finished_cache(
    memory, work_at, local, tracked, tmp_path
):
    push(local, opened(memory), tmp_path / "push")
    good = contents(memory)
    opened(memory).below(FINGERPRINT).remove(chunk_of(SHARDS[0], local))
    with CacheWork.open(tmp_path / "work", DESCRIPTION) as work:
        publish_as_on_another_device(work, SHARDS[0])
    with work_at(memory) as work:
        assert work.missing() == [SHARDS[0]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert contents(memory) == good


def test_a_shard_manifest_that_the_finished_cache_does_not_vouch_for_is_replaced(
    memory, work_at, local, tracked, tmp_path
):
    push(local, opened(memory), tmp_path / "push")
    good = contents(memory)
    rewrite(memory, f"{FINGERPRINT}/manifest/{SHARDS[1]}.json", lambda data: data.replace(b'"cpu"', b'"gpu"'))
    with work_at(memory) as work:
        assert work.missing() == [SHARDS[1]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert contents(memory) == good


def test_reading_back_finds_every_damaged_file_and_all_are_replaced(url, work_at, local, tracked, tmp_path):
    push(local, opened(url), tmp_path / "push")
    good = contents(url)
    for name in (chunk_of(SHARDS[0], local), "head.safetensors", "cache.json", "manifest.json"):
        rewrite(url, f"{FINGERPRINT}/{name}", flip)
    opened(url).below(FINGERPRINT).remove(chunk_of(SHARDS[2], local))
    looked, told = [], {}
    with work_at(url, verify=True) as work:
        assert work.missing(told.__setitem__, looked.append) == [SHARDS[0], SHARDS[2]]
        assert sorted(looked) == sorted(SHARDS)
        assert f"{chunk_of(SHARDS[0], local)} has SHA-256" in told[SHARDS[0]]
        assert write(work, tmp_path, tracked) == CacheReader(local).root_digest
    assert contents(url) == good
    with work_at(url, verify=True) as work:
        assert work.missing() == []


def test_a_part_of_the_cache_at_the_root_is_refused_when_it_is_read_back(memory, work_at, local, tmp_path):
    push(local, opened(memory), tmp_path / "push")
    other = f"{memory}-part"
    pull(opened(memory), FINGERPRINT, tmp_path / "part", tmp_path / "pull-work", splits=["validation"])
    push(tmp_path / "part", opened(other), tmp_path / "push")
    with work_at(other, verify=True) as work, pytest.raises(MismatchError, match="a cache of validation only"):
        work.missing()
