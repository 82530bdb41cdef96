import shutil

import numpy as np
import pytest
import torch

from stages import cache_teacher
from stages.batch_plan import BatchPlan
from stages.batches import PlannedBatches, ResidentShards, TargetDecoder, Wanted, decoder_for, split_batches, to_batch
from stages.config import ConfigError
from stages.losses import IGNORED
from storage import CacheReader, Layout, decode_hidden, decode_logits
from tests.stages.conftest import Project

EVERYTHING = Wanted(hidden=True, logits=True)


@pytest.fixture(scope="module", params=["lossless", "exact", "balanced"])
def reader(request, tokenized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached") / "project"
    shutil.copytree(tokenized, folder)
    project = Project(folder, cache={"preset": request.param, "top_k": 16})
    project.run(cache_teacher)
    return CacheReader(project.artefacts.cache)


def plan_of(reader, batch_size=8):
    return BatchPlan(tuple(n for _, n in reader.description.splits["train"].shards), batch_size, 0, 1)


def test_both_decoders_give_the_same_values(reader):
    shard = reader.load(reader.shards("train")[0])
    layout = reader.description.splits["train"].layout
    batch, decoder = to_batch(shard, pad_id=0, wanted=EVERYTHING), decoder_for(reader.description, "train")
    hidden = decode_hidden(layout, shard.hidden)[:, -1]
    np.testing.assert_array_equal(decoder.hidden(batch).numpy(), hidden)
    logits = decode_logits(layout, {**shard.logits, "stat": shard.stat})
    found = decoder.top_k(batch, 2.0)
    index = reader.description.temperatures.index(2.0)
    np.testing.assert_allclose(
        found.log_probabilities.numpy(), logits / 2 - shard.stat[:, 1 + 2 * index, None], rtol=1e-6, atol=1e-6
    )
    np.testing.assert_array_equal(found.ids.numpy(), shard.top_ids)


def test_rows_lie_at_their_tokens_in_the_padded_batch(reader):
    shard = reader.load(reader.shards("train")[0])
    batch = to_batch(shard, pad_id=0, wanted=EVERYTHING)
    flat = batch["input_ids"].flatten()[batch["row_index"]]
    np.testing.assert_array_equal(flat.numpy(), shard.input_ids)
    assert int(batch["attention_mask"].sum()) == shard.tokens
    labelled = batch["labels"] != IGNORED
    np.testing.assert_array_equal(labelled.numpy(), shard.masked == 1)
    np.testing.assert_array_equal(batch["labels"][labelled].numpy(), shard.original_ids[shard.masked == 1])


def test_the_probabilities_of_the_cached_ids_are_those_of_the_full_row(reader):
    batch = to_batch(reader.load(reader.shards("test")[0]), pad_id=0, wanted=EVERYTHING)
    targets = decoder_for(reader.description, "test").top_k(batch, 1.0)
    mass = targets.log_probabilities.exp().sum(-1)
    assert (mass > 0.1).all()
    assert (mass <= 1 + 1e-2).all()


def test_a_temperature_that_was_not_declared_is_refused(reader):
    batch = to_batch(reader.load(reader.shards("train")[0]), pad_id=0, wanted=EVERYTHING)
    decoder = decoder_for(reader.description, "train")
    with pytest.raises(ConfigError, match=r"train.temperature is 3.0; allowed: .* \(1.0, 2.0\)"):
        decoder.top_k(batch, 3.0)


def test_ranks_share_every_batch_without_overlap(reader):
    def sequences(rank, world_size):
        batches = PlannedBatches(
            reader, plan_of(reader), wanted=Wanted(hidden=False, logits=False), micro_batch_size=8 // world_size,
            first_step=0, last_step=4, rank=rank, world_size=world_size,
        )  # fmt: skip
        return [
            sorted(map(tuple, batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 0).tolist()))
            for batch in batches
        ]

    def strip(rows):
        return sorted(tuple(token for token in row if token) for row in rows)

    whole = [strip(rows) for rows in sequences(0, 1)]
    halves = [strip(one + other) for one, other in zip(sequences(0, 2), sequences(1, 2), strict=True)]
    assert halves == whole


def test_batches_from_a_later_step_are_those_of_the_whole_run(reader):
    def batches(first):
        return list(
            PlannedBatches(
                reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=first, last_step=6
            )
        )

    for one, other in zip(batches(0)[6:], batches(3), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_all_sequences_of_a_split_come_once_and_in_order(reader):
    batches = list(split_batches(reader, "test", batch_size=3, wanted=Wanted(hidden=False, logits=False)))
    assert sum(len(batch["input_ids"]) for batch in batches) == reader.description.splits["test"].sequences
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == reader.description.splits["test"].tokens


def test_no_more_shards_are_resident_than_allowed(reader):
    shards, resident = reader.shards("train"), ResidentShards(reader, limit=2)
    for shard in shards:
        resident.get(shard)
    assert len(resident._shards) == 2


def test_a_hidden_size_that_is_no_multiple_of_the_group_is_decoded_whole():
    layout = Layout(positions="all", hidden="int8", hidden_layers=(1,), logits="none", top_k=0, hidden_group=4)
    batch = {"hidden": torch.ones(2, 1, 6, dtype=torch.int8), "hidden_scale": torch.tensor([[[1.0, 2.0]]] * 2).half()}
    assert TargetDecoder(layout, (1.0,)).hidden(batch).tolist() == [[1, 1, 1, 1, 2, 2]] * 2
