"""Batches of a split for what is not training: in part, shared, and little padded."""

from itertools import chain

import numpy as np
import pytest

from stages.batches import Wanted, split_batches
from storage import CacheReader
from tests.storage.build import build_cache, make_description


@pytest.fixture(scope="module")
def three_shards(tmp_path_factory):
    """A cache with a train split of three shards of five sequences."""
    return CacheReader(build_cache(tmp_path_factory.mktemp("cache"), make_description(shards=3)))


def lengths(reader, **settings):
    """Of the sequences of each batch."""
    settings = {"batch_size": 2, "wanted": Wanted(hidden=False, logits=False), **settings}
    return [batch["attention_mask"].sum(1).tolist() for batch in split_batches(reader, "train", **settings)]


def stored(reader, number):
    """The lengths of a shard's sequences, in order."""
    return np.diff(reader.load(reader.shards("train")[number]).sequence_offsets.astype(int)).tolist()


def test_within_a_shard_those_of_like_length_come_together(three_shards):
    batches = lengths(three_shards)
    assert [len(batch) for batch in batches] == [2, 2, 1] * 3
    assert list(chain(*batches)) == [length for number in range(3) for length in sorted(stored(three_shards, number))]


def test_the_first_sequences_can_be_taken_alone(three_shards):
    found = lengths(three_shards, sequences=7)
    assert list(chain(*found)) == sorted(stored(three_shards, 0)) + sorted(stored(three_shards, 1)[:2])
    assert lengths(three_shards, sequences=5) == lengths(three_shards)[:3]
    assert lengths(three_shards, sequences=100) == lengths(three_shards)


def test_ranks_share_the_batches(three_shards):
    whole = lengths(three_shards)
    assert [lengths(three_shards, rank=rank, world_size=4) for rank in range(4)] == [
        whole[rank::4] for rank in range(4)
    ]


def test_all_sequences_of_a_split_come_once(reader):
    batches = list(split_batches(reader, "test", batch_size=3, wanted=Wanted(hidden=False, logits=False)))
    assert sum(len(batch["input_ids"]) for batch in batches) == reader.description.splits["test"].sequences
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == reader.description.splits["test"].tokens
