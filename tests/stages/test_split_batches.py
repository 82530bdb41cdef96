"""Batches of a split for what is not training: in part, shared, and little padded."""

from itertools import chain

import numpy as np
import pytest

from stages.batches import Wanted, split_batches
from storage import CacheReader
from tests.storage.build import build_cache, make_description


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A cache with a train split of three shards of five sequences."""
    return CacheReader(build_cache(tmp_path_factory.mktemp("cache"), make_description(shards=3)))


def lengths(reader, **settings):
    """Of the sequences of each batch."""
    settings = {"batch_size": 2, "wanted": Wanted(hidden=False, logits=False), **settings}
    return [batch["attention_mask"].sum(1).tolist() for batch in split_batches(reader, "train", **settings)]


def stored(reader, number):
    """The lengths of a shard's sequences, in order."""
    return np.diff(reader.load(reader.shards("train")[number]).sequence_offsets.astype(int)).tolist()


def test_within_a_shard_those_of_like_length_come_together(reader):
    batches = lengths(reader)
    assert [len(batch) for batch in batches] == [2, 2, 1] * 3
    assert list(chain(*batches)) == [length for number in range(3) for length in sorted(stored(reader, number))]


def test_the_first_sequences_can_be_taken_alone(reader):
    found = lengths(reader, sequences=7)
    assert list(chain(*found)) == sorted(stored(reader, 0)) + sorted(stored(reader, 1)[:2])
    assert lengths(reader, sequences=5) == lengths(reader)[:3]
    assert lengths(reader, sequences=100) == lengths(reader)


def test_ranks_share_the_batches(reader):
    whole = lengths(reader)
    assert [lengths(reader, rank=rank, world_size=4) for rank in range(4)] == [whole[rank::4] for rank in range(4)]
