"""A work folder that was begun with some splits of its cache."""

import dataclasses

import pytest

from storage import CacheWork, MismatchError, verify_cache
from tests.storage.build import build_cache, fill, make_description

WHOLE = make_description(shards=2)
PART = dataclasses.replace(WHOLE, splits={"train": WHOLE.splits["train"]})


@pytest.mark.parametrize("unfinished", [False, True])
def test_it_is_completed_and_keeps_its_shards(tmp_path, unfinished):
    expected = verify_cache(build_cache(tmp_path / "expected", WHOLE))
    part = build_cache(tmp_path, PART)
    if unfinished:
        part.rename(tmp_path / "work" / WHOLE.fingerprint)
    with CacheWork.open(tmp_path / "work", WHOLE) as work:
        assert work.take_back(part) is not unfinished
        assert [shard.split for shard in work.missing()] == ["validation"]
        fill(work, tmp_path)
        work.finish(part)
    assert verify_cache(part, deep=True) == expected


def test_a_part_does_not_take_the_place_of_the_whole_that_was_begun(tmp_path):
    with CacheWork.open(tmp_path, WHOLE):
        pass
    with pytest.raises(MismatchError, match="was begun with another description"), CacheWork.open(tmp_path, PART):
        pass
