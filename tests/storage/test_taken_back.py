import pytest

from storage import CacheReader, CacheWork
from storage.files import discard
from storage.locking import lock
from storage.taken_back import keep_linked, linked_copy
from tests.storage.build import build_cache, make_description


@pytest.fixture
def kept(tmp_path):
    """A finished cache in `current` that is kept in `work` as well: its description and root digest."""
    description = make_description(shards=2)
    digest = CacheReader(build_cache(tmp_path, description)).root_digest
    keep_linked(tmp_path / "current", tmp_path / "work", description.fingerprint)
    return description, digest


def test_a_cache_that_is_kept_by_links_is_finished_again_without_computing(kept, tmp_path):
    description, digest = kept
    discard(tmp_path / "current")
    with CacheWork.open(tmp_path / "work", description) as work:
        assert work.take_back(linked_copy(work.root, description.fingerprint))
        assert work.missing() == []
        assert work.finish(tmp_path / "current") == digest


def test_it_is_kept_until_another_one_is(kept, tmp_path):
    description, _ = kept
    keep_linked(tmp_path / "current", tmp_path / "work", "another")
    assert not linked_copy(tmp_path / "work", description.fingerprint).exists()
    assert linked_copy(tmp_path / "work", "another").is_dir()


def test_one_that_another_process_works_with_is_left(kept, tmp_path):
    description, _ = kept
    with lock(tmp_path / "work", description.fingerprint):
        keep_linked(tmp_path / "current", tmp_path / "work", "another")
    assert linked_copy(tmp_path / "work", description.fingerprint).is_dir()
