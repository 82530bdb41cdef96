import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batches import TargetDecoder, decoder_for, labelled_first, to_batch
from stages.config import ConfigError
from storage import Layout, decode_logits, decode_vectors, encode_hidden
from tests.stages.batches.conftest import EVERYTHING, RUNGS, first_shard


def test_both_decoders_give_the_same_values(reader):
    shard = reader.load(reader.shards("train")[0])
    layout = reader.description.splits["train"].layout
    batch, decoder = to_batch(shard, pad_id=0, wanted=EVERYTHING), decoder_for(reader.description, "train")
    hidden = decode_vectors(layout, "hidden", shard.hidden)[:, -1]
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


def test_a_hidden_size_that_is_no_multiple_of_the_group_is_decoded_whole():
    layout = Layout(positions="all", hidden="int8", hidden_layers=(1,), logits="none", top_k=0, hidden_group=4)
    batch = {"hidden": torch.ones(2, 1, 6, dtype=torch.int8), "hidden_scale": torch.tensor([[[1.0, 2.0]]] * 2).half()}
    assert TargetDecoder(layout, (1.0,)).hidden(batch).tolist() == [[1, 1, 1, 1, 2, 2]] * 2


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


def test_every_layer_and_every_vector_of_attention_is_decoded_to_the_very_bits_that_storage_gives(rung):
    arrays, batch, decoder = rung
    layout = decoder.layout
    for index, layer in enumerate(layout.hidden_layers):
        expected = arrays.decoded_hidden(layout)[:, index]
        np.testing.assert_array_equal(decoder.hidden(batch, layer).numpy(), expected)
    for part in layout.attention_vectors:
        for index, block in enumerate(layout.attention_layers):
            found = decoder.attention(batch, part, block)
            assert found.dtype == torch.float32
            np.testing.assert_array_equal(found.numpy(), arrays.decoded_attention(layout, part)[:, index])


def test_a_layer_or_block_that_is_not_cached_is_refused_by_its_number(tmp_path):
    _, batch, decoder = first_shard(tmp_path, RUNGS["attention"])
    with pytest.raises(
        ConfigError, match=r"hidden state of layer 3 is not cached; .*: 0, 1, 2 \(cache.hidden_layers\)"
    ):
        decoder.hidden(batch, 3)
    with pytest.raises(ConfigError, match=r"keys of layer 3 is not cached; .*: 1, 2 \(cache.attention_layers\)"):
        decoder.attention(batch, "keys", 3)
    _, batch, decoder = first_shard(tmp_path / "other", RUNGS["balanced"])
    with pytest.raises(ConfigError, match=r"keys of layer 1 is not cached; .*: none"):
        decoder.attention(batch, "keys", 1)


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
        TargetDecoder(layout, (1.0,)).hidden(batch).numpy(), decode_vectors(layout, "hidden", arrays)[:, -1]
    )
