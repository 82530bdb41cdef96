"""Pushing a cache to a remote root and pulling it from there, through faults, to the same bytes."""

import shutil
import sys

import pytest

from storage import (
    CacheReader,
    CacheWork,
    CorruptError,
    IncompleteError,
    LockedError,
    MismatchError,
    verify_cache,
)
from storage.errors import RemoteError
from storage.locking import lock
from storage.remote import RemoteFolder, finished_caches, pull, push, resolve
from tests.storage.build import LOGITS_ONLY, MASKED, build_cache, make_description
from tests.storage.damage import GROUP, SHARD, chunk_file, flip_a_bit
from tests.storage.fault_proxy import Fault
from tests.storage.remote_roots import killed_when, opened, rewrite


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def fingerprint(cache):
    return CacheReader(cache).description.fingerprint


@pytest.fixture
def pulled(tmp_path):
    """A function that pulls into a folder of its own, and the folder."""

    def pull_from(url, fingerprint, **options):
        done = pull(opened(url), fingerprint, tmp_path / "there" / "current", tmp_path / "there" / "work", **options)
        return done, tmp_path / "there" / "current"

    return pull_from


def with_a_flipped_bit(data):
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


def a_chunk(cache):
    return chunk_file(cache, "hidden").relative_to(cache).as_posix()


def test_a_cache_comes_back_from_every_kind_of_root_with_the_same_root_digest(url, cache, work, pulled):
    steps = []
    sent = push(cache, opened(url), work, begun=lambda *task: steps.append(task), advanced=steps.append)
    fetched, folder = pulled(url, sent.fingerprint)
    expected = verify_cache(cache)
    assert verify_cache(folder, deep=True) == expected
    assert sent.root_digest == fetched.root_digest == expected.root_digest
    assert sent.moved == sent.bytes == fetched.bytes == expected.bytes
    tasks = [step for step in steps if isinstance(step, tuple)]
    assert tasks == [("verify", sent.bytes), ("upload", sent.bytes)]
    assert sum(step for step in steps if isinstance(step, int)) == 2 * sent.bytes
    assert list(finished_caches(opened(url))) == [sent.fingerprint]
    assert not list(folder.parent.parent.rglob(".tmp-*"))


def test_a_second_push_and_a_second_pull_move_nothing(url, cache, work, pulled):
    done = push(cache, opened(url), work)
    assert push(cache, opened(url), work).moved == 0
    assert push(cache, opened(url), work, verify=True).moved == 0
    pulled(url, done.fingerprint)
    assert pulled(url, done.fingerprint)[0].moved == 0


def test_a_push_of_what_is_there_reads_no_shard_back_unless_told_to(s3, cache, work):
    url, proxy = s3
    push(cache, opened(url), work)
    proxy.reset()
    push(cache, opened(url), work)
    assert proxy.asked("PUT") == proxy.asked("GET", "/shards/") == 0
    push(cache, opened(url), work, verify=True)
    assert proxy.asked("GET", "/shards/") > 0


def test_a_flipped_bit_in_an_object_is_found_by_pull_and_replaced_by_a_verifying_push(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    name = a_chunk(cache)
    rewrite(memory, f"{done.fingerprint}/{name}", with_a_flipped_bit)
    with pytest.raises(CorruptError, match="has SHA-256") as refused:
        pulled(memory, done.fingerprint)
    assert f"{memory}/{done.fingerprint}/{name}" in str(refused.value)
    assert "pipeline cache push URL --verify" in str(refused.value)
    assert push(cache, opened(memory), work, verify=True).moved == (cache / name).stat().st_size
    assert verify_cache(pulled(memory, done.fingerprint)[1]) == verify_cache(cache)


def test_a_truncated_object_is_found_and_the_next_push_replaces_it(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    name = a_chunk(cache)
    rewrite(memory, f"{done.fingerprint}/{name}", lambda data: data[:-7])
    size = (cache / name).stat().st_size
    with pytest.raises(CorruptError, match=f"holds {size - 7} bytes; expected {size}"):
        pulled(memory, done.fingerprint)
    assert push(cache, opened(memory), work).moved == size
    assert verify_cache(pulled(memory, done.fingerprint)[1]) == verify_cache(cache)


def test_a_missing_object_is_named(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    opened(memory).remove(f"{done.fingerprint}/{a_chunk(cache)}")
    with pytest.raises(CorruptError, match=f"{a_chunk(cache)} is missing"):
        pulled(memory, done.fingerprint)


def test_a_damaged_cache_is_not_pushed(cache, work, s3):
    url, proxy = s3
    flip_a_bit(chunk_file(cache, "hidden"), 5)
    with pytest.raises(CorruptError, match="damaged"):
        push(cache, opened(url), work)
    assert proxy.asked("PUT") == 0


def test_another_cache_of_the_same_fingerprint_is_not_overwritten(memory, cache, work, tmp_path):
    push(cache, opened(memory), work)
    with CacheWork.open(tmp_path / "other", make_description(MASKED, shards=2)) as other:
        other.take_back(shutil.copytree(cache, tmp_path / "copy"))
        other.add_file("head.json", b'{"steps":[]}\n')
        other.finish(tmp_path / "different")
    with pytest.raises(MismatchError, match="another cache with the same fingerprint"):
        push(tmp_path / "different", opened(memory), work)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b'"rows":', b'"rows":1', 1)])
def test_a_damaged_root_manifest_is_written_anew(damage, memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    rewrite(memory, f"{done.fingerprint}/manifest.json", damage)
    push(cache, opened(memory), work)
    assert opened(memory).read(f"{done.fingerprint}/manifest.json") == (cache / "manifest.json").read_bytes()


def test_an_unfinished_root_is_refused_until_the_push_is_finished(memory, cache, work, pulled, fingerprint):
    class Stopped(Exception):
        pass

    begun = []

    def stop(_size):
        if begun[-1] == "upload":
            raise Stopped

    with pytest.raises(Stopped):
        push(cache, opened(memory), work, begun=lambda task, _size: begun.append(task), advanced=stop)
    assert finished_caches(opened(memory)) == {}
    with pytest.raises(IncompleteError, match=r"has no manifest\.json.*pipeline cache push"):
        pulled(memory, fingerprint)
    push(cache, opened(memory), work)
    assert verify_cache(pulled(memory, fingerprint)[1]) == verify_cache(cache)


def test_a_push_and_a_pull_that_are_killed_go_on_where_they_were(s3, tmp_path):
    url, proxy = s3
    cache = build_cache(tmp_path, make_description(MASKED, shards=3))
    expected = verify_cache(cache)
    transfer = [sys.executable, "-m", "tests.storage.transfer_process"]
    killed_when(Fault("hold", "PUT", "/shards/", after=30), proxy, [*transfer, "push", url, tmp_path])
    assert finished_caches(opened(url)) == {}
    sent = push(cache, opened(url), tmp_path / "work")
    assert 0 < sent.moved < sent.bytes
    killed_when(Fault("hold", "GET", "/shards/", after=30), proxy, [*transfer, "pull", url, tmp_path / "there"])
    assert not (tmp_path / "there" / "current").exists()
    fetched = pull(opened(url), sent.fingerprint, tmp_path / "there" / "current", tmp_path / "there" / "work")
    assert 0 < fetched.moved < fetched.bytes
    assert verify_cache(tmp_path / "there" / "current", deep=True) == expected
    assert not list(tmp_path.rglob(".tmp-*"))
    assert not list(tmp_path.rglob("pull-*"))


@pytest.mark.parametrize("kind", ["500", "drop", "truncate", "flip"])
def test_what_goes_wrong_on_the_way_is_fetched_again(kind, s3, cache, work, pulled):
    url, proxy = s3
    done = push(cache, opened(url), work)
    fault = Fault(kind, "GET", a_chunk(cache))
    proxy.faults.append(fault)
    _, folder = pulled(url, done.fingerprint)
    assert fault.times == 0
    assert verify_cache(folder) == verify_cache(cache)


@pytest.mark.parametrize("kind", ["500", "drop"])
def test_an_upload_that_fails_is_sent_again(kind, s3, cache, work, pulled):
    url, proxy = s3
    proxy.faults.append(Fault(kind, "PUT", "/shards/", times=2))
    done = push(cache, opened(url), work)
    assert verify_cache(pulled(url, done.fingerprint)[1]) == verify_cache(cache)


def test_a_store_that_keeps_failing_is_named_and_the_attempts_end(s3, cache, work, pulled):
    url, proxy = s3
    done = push(cache, opened(url), work)
    proxy.faults.append(Fault("500", "GET", "head.json", times=1000))
    with pytest.raises(RemoteError, match="failed 4 times") as refused:
        pulled(url, done.fingerprint)
    assert f"{url}/{done.fingerprint}/head.json" in str(refused.value)
    assert "\n" not in str(refused.value)
    proxy.reset()
    assert verify_cache(pulled(url, done.fingerprint)[1]) == verify_cache(cache)


def test_a_lack_of_permission_is_not_tried_again(s3, cache, work):
    url, proxy = s3
    proxy.faults.append(Fault("403", "GET", "manifest.json", times=1000))
    with pytest.raises(RemoteError, match=r"was refused .*credentials"):
        push(cache, opened(url), work)
    assert proxy.asked("GET", "manifest.json") == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket/root", "bucket does not exist"),
        ("nothing://there", "Protocol not known"),
    ],
)
def test_a_wrong_url_ends_in_one_line(url, message, s3, cache, work):
    with pytest.raises(RemoteError, match=message):
        push(cache, opened(url), work)


def test_messages_show_no_password():
    with pytest.raises(RemoteError) as refused:
        RemoteFolder("nothing://me:secret@there")
    assert "secret" not in str(refused.value)


def test_two_pulls_at_once_are_told_apart(memory, cache, work, pulled, fingerprint, tmp_path):
    push(cache, opened(memory), work)
    (tmp_path / "there" / "work").mkdir(parents=True)
    with lock(tmp_path / "there" / "work", fingerprint), pytest.raises(LockedError, match="another process works on"):
        pulled(memory, fingerprint)


def test_another_cache_is_kept_aside_and_comes_back(tmp_path, work, cache):
    url = f"file://{tmp_path}/remote"
    mine = build_cache(tmp_path / "mine", make_description(LOGITS_ONLY, shards=1))
    expected = verify_cache(mine)
    other = push(cache, opened(url), work)
    pull(opened(url), other.fingerprint, mine, tmp_path / "mine" / "work")
    assert verify_cache(mine) == verify_cache(cache)
    kept = tmp_path / "mine" / "work" / CacheReader(tmp_path / "mine" / "work" / own(mine)).description.fingerprint
    assert verify_cache(kept) == expected


def own(cache):
    """The name of the only folder beside the locks in the work folder of a cache."""
    (folder,) = [path for path in (cache.parent / "work").iterdir() if path.is_dir()]
    return folder.name


def test_a_folder_that_is_no_cache_is_not_touched(tmp_path, work, cache):
    url = f"file://{tmp_path}/remote"
    done = push(cache, opened(url), work)
    (tmp_path / "there" / "current").mkdir(parents=True)
    (tmp_path / "there" / "current" / "notes.txt").write_text("mine")
    with pytest.raises(MismatchError, match="holds no teacher cache"):
        pull(opened(url), done.fingerprint, tmp_path / "there" / "current", tmp_path / "there" / "work")
    assert (tmp_path / "there" / "current" / "notes.txt").read_text() == "mine"


def test_one_split_is_a_cache_of_its_own_and_the_rest_follows_later(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    part, folder = pulled(memory, done.fingerprint, splits=["validation"])
    reader = CacheReader(folder)
    assert list(reader.counts) == list(reader.description.splits) == ["validation"]
    assert verify_cache(folder, deep=True).root_digest == part.root_digest != done.root_digest
    assert part.fingerprint == done.fingerprint
    whole, _ = pulled(memory, done.fingerprint)
    assert whole.moved <= done.bytes - part.moved
    assert verify_cache(folder, deep=True) == verify_cache(cache)
    with pytest.raises(MismatchError, match="holds no test; it has train, validation"):
        pulled(memory, done.fingerprint, splits=["test"])


def test_pull_mends_a_damaged_cache_with_what_is_missing_only(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    _, folder = pulled(memory, done.fingerprint)
    flip_a_bit(chunk_file(folder, "hidden"), 5)
    (folder / GROUP / "zarr.json").unlink()
    lost = chunk_file(cache, "hidden").stat().st_size + (cache / GROUP / "zarr.json").stat().st_size
    assert pulled(memory, done.fingerprint)[0].moved == lost
    assert verify_cache(folder) == verify_cache(cache)


def test_another_root_digest_than_the_expected_one_is_refused(memory, cache, work, pulled):
    done = push(cache, opened(memory), work)
    with pytest.raises(MismatchError, match=r"has root digest .*; expected 000000000000"):
        pulled(memory, done.fingerprint, root_digest="0" * 64)


def test_a_shard_of_another_unfinished_push_is_not_taken_for_ours(memory, cache, work, pulled, fingerprint):
    name = f"manifest/{SHARD}.json"
    push(cache, opened(memory), work)
    remote = opened(memory).below(fingerprint)
    remote.remove("manifest.json")
    rewrite(memory, f"{fingerprint}/{a_chunk(cache)}", with_a_flipped_bit)  # of the same size
    rewrite(memory, f"{fingerprint}/{name}", lambda data: data.replace(b'"device":"cpu"', b'"device":"gpu"'))
    push(cache, opened(memory), work)
    assert verify_cache(pulled(memory, fingerprint)[1]) == verify_cache(cache)


def test_a_fingerprint_may_be_shortened(memory, cache, work, fingerprint):
    push(cache, opened(memory), work)
    assert resolve(opened(memory), fingerprint[:8]) == fingerprint
    with pytest.raises(RemoteError, match=f"holds 0 caches whose fingerprint begins with 'xyz'.*{fingerprint}"):
        resolve(opened(memory), "xyz")
