import dataclasses
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import cache_teacher
from stages.batch_plan import BatchPlan
from stages.batches import (
    PlannedBatches,
    TargetDecoder,
    Wanted,
    decoder_for,
    labelled_first,
    labelled_rows,
    slots_for,
    split_batches,
    to_batch,
)
from stages.config import ConfigError
from stages.losses import IGNORED
from storage import CacheReader, Layout, SharedBy, decode_hidden, decode_logits, decoded_bytes, encode_hidden
from tests.stages.conftest import Project
from tests.storage.build import LAYOUTS, build_cache, make_description

EVERYTHING = Wanted(hidden=True, logits=True, draws=True)
RUNGS = LAYOUTS | {
    "odd_step": dataclasses.replace(LAYOUTS["balanced"], grid_step=0.1),
    "odd_step_ragged": dataclasses.replace(LAYOUTS["threshold"], grid_step=0.3),
    "bfloat16_layers": dataclasses.replace(LAYOUTS["hidden_only"], hidden="bfloat16"),
}
"""Layouts of which every coding has one or more."""


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
    np.testing.assert_array_equal(decoder.logits(batch).numpy(), logits)
    logits[:, 0] = shard.stat[:, 0]  # unrounded
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


def test_the_probabilities_of_the_cached_ids_are_those_of_the_full_row(reader):
    batch = to_batch(reader.load(reader.shards("test")[0]), pad_id=0, wanted=EVERYTHING)
    targets = decoder_for(reader.description, "test").top_k(batch, 1.0)
    mass = targets.log_probabilities.exp().sum(-1)
    assert (mass > 0.1).all()
    assert (mass <= 1 + 1e-2).all()


@pytest.mark.parametrize("name", [name for name, layout in RUNGS.items() if layout.logits != "none"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_probability_of_the_likeliest_id_has_no_coding_error(tmp_path, name, temperature):
    arrays, batch, decoder = first_shard(tmp_path, RUNGS[name])
    found = decoder.top_k(batch, temperature).log_probabilities[:, 0]
    column = 1 + 2 * decoder.temperatures.index(temperature)
    expected = arrays.stat[:, 0].astype(np.float64) / temperature - arrays.stat[:, column]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


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


@pytest.mark.parametrize("seed", range(4))
def test_ranks_that_take_nothing_from_a_window_read_on_with_the_least_memory(tmp_path, seed):
    """More ranks than the last window of an epoch has sequences, and no slot to spare."""
    cached = CacheReader(build_cache(tmp_path, make_description(shards=5)))
    plan = BatchPlan(tuple(count for _, count in cached.description.splits["train"].shards), 8, seed, 1)
    least = 4 * decoded_bytes(cached, cached.shards("train"))
    shared_by = tmp_path / "socket"

    def batches(rank, shared):
        return list(
            PlannedBatches(
                cached, plan, wanted=EVERYTHING, micro_batch_size=1, first_step=0, last_step=9, rank=rank, world_size=8,
                memory_bytes=least, shared_by=SharedBy(rank=rank, size=8, address=shared_by) if shared else None,
            )
        )  # fmt: skip

    alone = [batches(rank, shared=False) for rank in range(8)]
    with ThreadPoolExecutor(8) as ranks:
        together = list(ranks.map(lambda rank: batches(rank, shared=True), range(8)))
    for one, other in zip(alone, together, strict=True):
        for expected, found in zip(one, other, strict=True):
            assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_least_memory_that_a_refusal_names_is_enough(reader):
    plan = plan_of(reader)
    with pytest.raises(ConfigError) as refused:
        slots_for(reader, plan, 5000)
    least = float(re.search(r"allowed: (\S+) or more", str(refused.value))[1])
    assert slots_for(reader, plan, int(least * 2**30))[0] >= plan.window_shards


def test_all_sequences_of_a_split_come_once_and_in_order(reader):
    batches = list(split_batches(reader, "test", batch_size=3, wanted=Wanted(hidden=False, logits=False)))
    assert sum(len(batch["input_ids"]) for batch in batches) == reader.description.splits["test"].sequences
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == reader.description.splits["test"].tokens


def test_the_batches_do_not_depend_on_how_much_memory_there_is(reader):
    def batches(**memory):
        return list(
            PlannedBatches(
                reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=1, last_step=9, **memory
            )
        )

    least = 4 * decoded_bytes(reader, reader.shards("train"))
    for one, other in zip(batches(), batches(memory_bytes=least), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_memory_that_does_not_hold_the_shards_of_a_window_is_refused(reader):
    batches = PlannedBatches(
        reader, plan_of(reader), wanted=EVERYTHING, micro_batch_size=4, first_step=0, last_step=1, memory_bytes=5000
    )
    with pytest.raises(ConfigError, match=r"machine.shard_memory_gb is 4.66e-06; allowed: 0.\d+ or more, as 4 shards"):
        next(iter(batches))


def test_a_hidden_size_that_is_no_multiple_of_the_group_is_decoded_whole():
    layout = Layout(positions="all", hidden="int8", hidden_layers=(1,), logits="none", top_k=0, hidden_group=4)
    batch = {"hidden": torch.ones(2, 1, 6, dtype=torch.int8), "hidden_scale": torch.tensor([[[1.0, 2.0]]] * 2).half()}
    assert TargetDecoder(layout, (1.0,)).hidden(batch).tolist() == [[1, 1, 1, 1, 2, 2]] * 2


def first_shard(folder, layout, objective="masked"):
    """A shard with random content: its arrays, its batch and its decoder."""
    description = dataclasses.replace(make_description(layout), objective=objective)
    reader = CacheReader(build_cache(folder, description))
    arrays = reader.load(reader.shards("train")[0])
    batch = to_batch(arrays, pad_id=0, wanted=EVERYTHING, objective=objective)
    return arrays, batch, decoder_for(reader.description, "train")


@pytest.fixture(params=RUNGS)
def rung(request, tmp_path):
    """`first_shard` in one of the layouts."""
    return first_shard(tmp_path, RUNGS[request.param])


def rows_of(flat, counts):
    return np.split(flat, np.cumsum(counts)[:-1])


def test_every_rung_is_decoded_to_the_very_bits_that_storage_gives(rung):
    arrays, batch, decoder = rung
    if arrays.hidden:
        expected = arrays.decoded_hidden(decoder.layout)[:, -1]
        assert decoder.hidden(batch).dtype == torch.float32
        np.testing.assert_array_equal(decoder.hidden(batch).numpy(), expected)
    if arrays.logits:
        expected, found = arrays.decoded_logits(decoder.layout), decoder.logits(batch).numpy()
        if arrays.top_count is None:
            np.testing.assert_array_equal(found, expected)
        else:
            for row, (count, values) in enumerate(
                zip(arrays.top_count, rows_of(expected, arrays.top_count), strict=True)
            ):
                np.testing.assert_array_equal(found[row, :count], values)


def test_rows_with_fewer_logits_repeat_their_first_id_with_a_probability_of_zero(rung):
    arrays, batch, decoder = rung
    if arrays.top_count is None or arrays.top_ids is None:
        return
    targets = decoder.top_k(batch, 2.0)
    ids, p = targets.ids.numpy(), targets.log_probabilities.exp().numpy()
    assert ids.shape[1] == arrays.top_count.max()
    for row, (count, expected) in enumerate(
        zip(arrays.top_count, rows_of(arrays.top_ids, arrays.top_count), strict=True)
    ):
        assert ids[row].tolist() == [*expected, *[expected[0]] * (ids.shape[1] - count)]
        assert (p[row, :count] > 0).all()
        assert (p[row, count:] == 0).all()


def test_the_shares_of_the_draws_are_their_weights_and_sum_to_one(rung):
    arrays, batch, decoder = rung
    layout = decoder.layout
    if not layout.draws:
        return
    targets = decoder.draws(batch, layout.draw_temperature)
    torch.testing.assert_close(targets.shares.sum(-1), torch.ones(arrays.rows), rtol=1e-3, atol=1e-3)
    head = targets.ids.shape[1] - batch["draw_ids"].shape[1]
    assert (head > 0) == (layout.draw_from == "tail")
    outside = 1 - targets.shares[:, :head].sum(-1)
    weights = rows_of(arrays.draw_weight, arrays.draw_count)
    for row, (ids, weight) in enumerate(zip(rows_of(arrays.draw_ids, arrays.draw_count), weights, strict=True)):
        some = slice(head, head + len(ids))
        assert targets.ids[row, some].tolist() == ids.tolist()
        expected = outside[row] * torch.from_numpy(weight / layout.draws).float()
        torch.testing.assert_close(targets.shares[row, some], expected, rtol=1e-5, atol=1e-7)
        assert (targets.shares[row, some.stop :] == 0).all()
    index = decoder.temperatures.index(layout.draw_temperature)
    np.testing.assert_array_equal(targets.entropy.numpy(), arrays.stat[:, 2 + 2 * index])


def test_draws_at_another_temperature_than_they_were_drawn_at_are_refused(rung):
    _, batch, decoder = rung
    if decoder.layout.draws:
        other = 3.0 - decoder.layout.draw_temperature
        with pytest.raises(
            ConfigError, match=rf"train.temperature is {other}; allowed: {3.0 - other}, .*draw_temperature"
        ):
            decoder.draws(batch, other)


def test_rows_of_tokens_that_are_not_masked_stand_for_as_many_as_were_left_out(rung):
    arrays, batch, decoder = rung
    weights = decoder.row_weights(labelled_first(batch))
    if decoder.layout.positions != "sampled":
        assert weights is None
        assert decoder.positions(batch) == arrays.rows
        return
    masked = -np.sort(-(arrays.masked[arrays.row_token] == 1).astype(int)) == 1
    expected = np.where(masked, 1.0, 1.0 / decoder.layout.position_fraction)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert decoder.positions(batch) == arrays.tokens


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 70),
    group=st.sampled_from([1, 7, 16, 64, 100]),
    hidden=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    magnitude=st.sampled_from([1e-30, 1e-6, 1.0, 300.0, 6e4]),
)
def test_hidden_states_of_any_width_and_size_are_decoded_to_the_bits_that_storage_gives(
    seed, width, group, hidden, magnitude
):
    layout = Layout(positions="all", hidden=hidden, hidden_layers=(0, 3), hidden_group=group, logits="none", top_k=0)
    values = np.random.default_rng(seed).uniform(-magnitude, magnitude, (5, 2, width)).astype(np.float32)
    arrays = encode_hidden(layout, values)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    np.testing.assert_array_equal(
        TargetDecoder(layout, (1.0,)).hidden(batch).numpy(), decode_hidden(layout, arrays)[:, -1]
    )
