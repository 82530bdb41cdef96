"""The folder of fetched shards: what is forgotten of other caches, and a disk that refuses."""

import fcntl

import pytest

from storage import CacheReader
from storage.errors import WriteError
from storage.remote import RemoteReader, push
from storage.remote.local_shards import forget_other_caches
from tests.storage.build import MASKED, build_cache, make_description
from tests.storage.remote_roots import opened


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A cache in a folder, never changed."""
    return CacheReader(build_cache(tmp_path_factory.mktemp("local"), make_description(MASKED, shards=3)))


@pytest.fixture
def reader(local, memory, tmp_path):
    """The same cache at a root, with nothing fetched yet."""
    fingerprint = push(local.folder, opened(memory), tmp_path / "push").fingerprint
    return RemoteReader(f"{memory}/{fingerprint}", tmp_path / "shards", prefetch=0)


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_shard_that_another_process_fetches_is_not_forgotten_and_rubbish_of_others_is(reader, tmp_path):
    under_way, left, half_removed = reader.shards("train")
    shards = reader.folder / "shards"
    reader.load(left)
    reader.load(half_removed)
    (shards / f"{half_removed}.zarr").rename(shards / f".tmp-discarded-{half_removed}.zarr")
    (shards / f".tmp-{left}.zarr").mkdir()
    locks = names_in(reader.folder / "locks") | {f"{under_way}.lock"}
    with reader._local._lock_file(under_way) as descriptor:
        reader._local._reserve(under_way)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        forget_other_caches(tmp_path / "shards", "another")
        assert names_in(shards) == {f".tmp-{under_way}.zarr"}
    forget_other_caches(tmp_path / "shards", "another")
    assert not names_in(shards)
    assert names_in(reader.folder / "locks") == locks | {"room.lock"}


@pytest.mark.parametrize("folder", ["shards", "locks"])
def test_a_folder_that_refuses_is_named_with_what_to_do(folder, reader):
    place = reader.folder / folder
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    place.write_bytes(b"")  # refuses root as well
    with pytest.raises(
        WriteError, match=rf"could not be written to {reader.folder} .*{folder}.*run the same command again"
    ):
        reader._local.fetch_ahead(reader.shards("train")[0])


def test_a_shard_that_cannot_be_put_in_its_place_leaves_nothing_and_says_why(reader):
    shard = reader.shards("train")[0]
    (reader.folder / "shards" / f"{shard}.zarr").write_bytes(b"")
    reader._local._temporary(shard).mkdir()
    with pytest.raises(WriteError, match=rf"could not be written to {reader.folder}"):
        reader._local._fetch(shard)
    assert names_in(reader.folder / "shards") == {f"{shard}.zarr"}


def test_a_place_for_shards_that_cannot_be_made_is_named(reader, local, memory, tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(WriteError, match=f"could not be written to {tmp_path}/taken/"):
        RemoteReader(f"{memory}/{local.description.fingerprint}", tmp_path / "taken")
