import dataclasses
import re

import numpy as np
import pytest
import torch

from stages.batches import Wanted, labelled_first, labelled_rows, to_batch, training_batch
from stages.losses import IGNORED
from storage import CacheReader, ShardArrays
from tests.stages.batches.conftest import EVERYTHING, RUNGS, first_shard
from tests.storage.build import LAYOUTS, build_cache, make_description


def test_rows_lie_at_their_tokens_in_the_padded_batch(reader):
    shard = reader.load(reader.shards("train")[0])
    batch = to_batch(shard, pad_id=0, wanted=EVERYTHING)
    flat = batch["input_ids"].flatten()[batch["row_index"]]
    np.testing.assert_array_equal(flat.numpy(), shard.input_ids)
    assert int(batch["attention_mask"].sum()) == shard.tokens
    labelled = batch["labels"] != IGNORED
    np.testing.assert_array_equal(labelled.numpy(), shard.masked == 1)
    np.testing.assert_array_equal(batch["labels"][labelled].numpy(), shard.original_ids[shard.masked == 1])


@pytest.mark.parametrize("position_fraction", [1.0, 0.6])
def test_the_labels_of_a_causal_cache_are_the_tokens_that_follow_in_the_same_sequence(tmp_path, position_fraction):
    positions = "all" if position_fraction == 1.0 else "sampled"
    layout = dataclasses.replace(LAYOUTS["lossless"], positions=positions, position_fraction=position_fraction)
    arrays, batch, decoder = first_shard(tmp_path, layout, objective="causal")
    expected = []
    for token in arrays.row_token:
        last = token + 1 in arrays.sequence_offsets
        expected.append(IGNORED if last else int(arrays.original_ids[token + 1]))
    assert batch["labels"].tolist() == expected
    assert IGNORED in expected
    weights = decoder.row_weights(labelled_first(batch))
    if positions == "sampled":
        torch.testing.assert_close(weights, torch.full((len(expected),), 1 / position_fraction))
    else:
        assert weights is None


def test_the_labelled_rows_of_a_batch_are_its_first_ones(reader):
    batch = labelled_first(to_batch(reader.load(reader.shards("train")[0]), pad_id=0, wanted=EVERYTHING))
    count = len(batch["labels"])
    rows = labelled_rows(batch)
    assert rows.keys() == batch.keys()
    for name, tensor in rows.items():
        whole = name in ("input_ids", "attention_mask", "labels")
        torch.testing.assert_close(tensor, batch[name] if whole else batch[name][:count])


def test_what_a_loss_reads_has_the_predicted_rows_first(reader):
    stored = to_batch(reader.load(reader.shards("train")[0]), pad_id=0, wanted=EVERYTHING)
    batch = labelled_first(stored)
    labelled = stored["labels"] != IGNORED
    assert 0 < len(batch["labels"]) == int(labelled.sum()) < len(labelled)
    torch.testing.assert_close(batch["labels"], stored["labels"][labelled])
    rows = set(stored) - {"labels", "input_ids", "attention_mask"}
    assert {"row_index", "hidden", "stat", "top_ids"} <= rows
    for name in rows:
        torch.testing.assert_close(batch[name], torch.cat([stored[name][labelled], stored[name][~labelled]]))


@pytest.mark.parametrize("name", RUNGS)
def test_a_training_batch_is_that_of_its_sequences_with_the_predicted_rows_first(tmp_path, name):
    reader = CacheReader(build_cache(tmp_path, make_description(RUNGS[name])))
    shards = [reader.load(shard) for shard in reader.shards("train")]
    for chosen in ([[3, 0], [], [1, 2, 4]], [[0], [0], [0]], [[4, 4], [2], []]):
        parts = [(arrays, np.array(some, np.int64)) for arrays, some in zip(shards, chosen, strict=True)]
        rows = ShardArrays.concatenate([arrays.select(some) for arrays, some in parts])
        some_layers = Wanted(hidden=False, logits=False, layers=(0,), attention=("values",))
        for wanted in (EVERYTHING, Wanted(hidden=False, logits=True), Wanted(hidden=True, logits=False), some_layers):
            expected = labelled_first(to_batch(rows, pad_id=0, wanted=wanted))
            found = training_batch(parts, pad_id=0, wanted=wanted)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                assert found[key].dtype == tensor.dtype
                assert torch.equal(found[key], tensor), key


def test_a_training_batch_may_have_no_rows(tmp_path):
    reader = CacheReader(build_cache(tmp_path, make_description(RUNGS["tail"])))
    arrays = reader.load(reader.shards("train")[0])
    bare = arrays.select(np.array([0]))
    none = bare.select(np.array([], np.int64))
    empty = ShardArrays(
        **{**vars(none), "sequence_ids": bare.sequence_ids, "sequence_offsets": bare.sequence_offsets}
        | {name: getattr(bare, name) for name in ("original_ids", "input_ids", "masked")}
        | {"row_offsets": np.zeros(2, np.int64)}
    )
    batch = training_batch([(empty, np.array([0]))], pad_id=0, wanted=EVERYTHING)
    assert len(batch["labels"]) == len(batch["row_index"]) == len(batch["hidden"]) == len(batch["draw_ids"]) == 0
    assert int(batch["attention_mask"].sum()) == bare.tokens


def test_only_wanted_layers_and_parts_travel(tmp_path):
    reader = CacheReader(build_cache(tmp_path, make_description(RUNGS["attention"])))
    for wanted, names in (
        (Wanted(hidden=True, logits=False), {"hidden"}),
        (Wanted(hidden=True, logits=False, layers=(0,)), {"hidden", "hidden:0"}),
        (Wanted(hidden=False, logits=False, layers=(0, 1)), {"hidden:0", "hidden:1"}),
        (Wanted(hidden=False, logits=False, layers=(2,)), {"hidden"}),
        (Wanted(hidden=False, logits=False, attention=("keys",)), {"keys:1", "keys:2"}),
    ):
        arrays = reader.load(reader.shards("train")[0], targets=wanted.targets)
        batch = to_batch(arrays, pad_id=0, wanted=wanted)
        scales = {re.sub(r"^\w+", r"\g<0>_scale", name) for name in names}
        assert set(batch) == {"input_ids", "attention_mask", "row_index", "labels"} | names | scales


def test_what_no_loss_reads_is_in_no_batch(tmp_path):
    reader = CacheReader(build_cache(tmp_path, make_description(RUNGS["tail"])))
    for wanted, names in (
        (Wanted(hidden=True, logits=False), {"hidden", "hidden_scale"}),
        (Wanted(hidden=False, logits=True), {"stat", "top_ids", "top_logits", "top_count"}),
        (Wanted(hidden=False, logits=False, draws=True), {"stat", "draw_ids", "draw_weight"}),
    ):
        arrays = reader.load(reader.shards("train")[0], targets=wanted.targets)
        batch = to_batch(arrays, pad_id=0, wanted=wanted)
        assert set(batch) == {"input_ids", "attention_mask", "row_index", "labels"} | names
