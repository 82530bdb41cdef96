import dataclasses

import numpy as np
import pytest
import torch

from stages.draws import ShardUniforms
from stages.errors import Interrupted
from stages.heads import Head
from stages.row_targets import RowTargets
from stages.teacher_batches import batches
from stages.teacher_targets import SeenSequences, TargetsComputer
from storage import Layout
from storage.codecs import decode_logits, decode_vectors, encode_vectors
from tests.stages.tiny_models import tiny_bert

EXACT = Layout(positions="all", hidden="float32", hidden_layers=(0, 2, 3), logits="float32", top_k=5)
LENGTHS = (9, 3, 9, 1, 14, 7)


def seen(masked_share=0.3, lengths=LENGTHS, vocabulary=60):
    random = np.random.default_rng(0)
    offsets = np.cumsum([0, *lengths]).astype(np.uint32)
    ids = random.integers(0, vocabulary, offsets[-1]).astype(np.uint16)
    masked = (random.random(offsets[-1]) < masked_share).astype(np.uint8)
    return SeenSequences(
        offsets=offsets,
        original_ids=ids,
        input_ids=ids,
        masked=masked,
        start=40,
        uniforms=ShardUniforms(0, "train", 0),
    )


def computer(batch_tokens=32, **changes):
    return TargetsComputer(tiny_bert(**changes), temperatures=(1.0, 2.0), pad_id=0, batch_tokens=batch_tokens)


@torch.no_grad()
def alone(sequences, number):
    """Hidden states of every layer and logits of one sequence, from the model itself, without any batch."""
    ids = sequences.input_ids[sequences.offsets[number] : sequences.offsets[number + 1]]
    output = tiny_bert()(torch.from_numpy(ids.astype(np.int64))[None], output_hidden_states=True)
    return torch.stack(output.hidden_states, 2)[0], output.logits[0]


def test_batches_hold_every_token_once_and_no_more_than_the_budget():
    offsets = np.cumsum([0, *LENGTHS]).astype(np.uint32)
    found = list(batches(offsets, 32))
    assert sorted(np.concatenate([batch.tokens for batch in found])) == list(range(offsets[-1]))
    assert all(np.prod(batch.shape) <= 32 for batch in found)
    assert [batch.is_padded for batch in found] == [len(set(batch.lengths)) > 1 for batch in found]
    assert [batch.shape for batch in batches(offsets, 1)] == [(1, length) for length in sorted(LENGTHS, reverse=True)]


@pytest.mark.parametrize("batch_tokens", [1, 32, 1000])
def test_every_row_is_what_the_teacher_says_of_that_sequence_alone(batch_tokens):
    sequences = seen()
    targets = computer(batch_tokens).compute(sequences, EXACT).targets()
    for number in range(len(LENGTHS)):
        rows = slice(int(sequences.offsets[number]), int(sequences.offsets[number + 1]))
        states, logits = alone(sequences, number)
        np.testing.assert_allclose(
            decode_vectors(EXACT, "hidden", targets.encoded)[rows], states[:, [0, 2, 3]], atol=2e-5
        )
        np.testing.assert_allclose(targets.top_logits[rows], logits.topk(5).values, atol=5e-5)
        np.testing.assert_allclose(targets.stat[rows, 3], (logits / 2).logsumexp(-1), atol=5e-5)


ATTENTION = Layout(
    positions="all", hidden="float32", hidden_layers=(1,), logits="none", top_k=0,
    attention_vectors=("queries", "values"), attention_widths=(16, 16), attention_layers=(1, 3),
    attention_coding="float32",
)  # fmt: skip


@pytest.mark.parametrize("batch_tokens", [1, 32, 1000])
def test_vectors_of_attention_are_what_the_projections_of_that_sequence_alone_put_out(batch_tokens):
    """In batches of any shape, padded or not, and in the order of the rows."""
    sequences, model = seen(), tiny_bert()
    targets = computer(batch_tokens).compute(sequences, ATTENTION).targets()
    assert {name: array.shape for name, array in targets.encoded.items()} == {
        "hidden": (sequences.offsets[-1], 1, 16),
        "queries": (sequences.offsets[-1], 2, 16),
        "values": (sequences.offsets[-1], 2, 16),
    }
    for number in range(len(LENGTHS)):
        rows = slice(int(sequences.offsets[number]), int(sequences.offsets[number + 1]))
        states, _ = alone(sequences, number)
        for place, block in enumerate(ATTENTION.attention_layers):
            attention = model.bert.encoder.layer[block - 1].attention.self
            with torch.no_grad():
                for name, projection in (("queries", attention.query), ("values", attention.value)):
                    expected = projection(states[:, block - 1])
                    np.testing.assert_allclose(targets.encoded[name][rows, place], expected, atol=2e-5)


def test_coded_vectors_are_those_that_storage_makes_of_the_exact_ones():
    int8 = dataclasses.replace(ATTENTION, attention_coding="int8", hidden_group=5)
    exact, found = (computer().compute(seen(), layout).targets() for layout in (ATTENTION, int8))
    for name in ("queries", "values"):
        for key, expected in encode_vectors(int8, name, exact.encoded[name]).items():
            assert found.encoded[key].dtype == expected.dtype
            np.testing.assert_array_equal(found.encoded[key], expected)


def test_only_the_rows_that_are_kept_come_in_the_order_of_their_tokens():
    masked = Layout(positions="masked", hidden="float32", hidden_layers=(3,), logits="float32", top_k=5)
    sequences = seen()
    everything = computer().compute(sequences, EXACT).targets()
    found = computer().compute(sequences, masked).targets()
    assert found.row_token.tolist() == np.flatnonzero(sequences.masked).tolist()
    np.testing.assert_array_equal(found.top_ids, everything.top_ids[found.row_token])
    np.testing.assert_allclose(found.stat, everything.stat[found.row_token], atol=1e-5)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(positions="masked", hidden="int8", hidden_layers=(3,), logits="grid", top_k=4),
        Layout(positions="masked", hidden="none", hidden_layers=(), logits="grid", top_k=4, draws=6),
        Layout(
            positions="masked",
            hidden="none",
            hidden_layers=(),
            logits="grid",
            top_k=9,
            selection="threshold",
            threshold=0.01,
        ),
    ],
)
def test_a_shard_without_a_single_row_has_arrays_without_rows(layout):
    targets = computer().compute(seen(masked_share=0.0), layout).targets()
    assert targets.rows == 0
    assert len(targets.stat) == len(targets.row_token) == 0


def test_logits_on_the_grid_are_coded_beside_the_floats_that_are_checked():
    layout = Layout(positions="all", hidden="none", hidden_layers=(), logits="grid", top_k=8)
    targets = computer().compute(seen(), layout).targets()
    decoded = decode_logits(layout, {**targets.encoded, "stat": targets.stat})
    assert np.abs(decoded - targets.top_logits).max() <= 0.0626


def test_a_stop_drops_the_shard_before_its_next_batch():
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        computer(batch_tokens=1).compute(seen(), EXACT, lambda: next(asked))
    assert list(asked) == []


def test_rows_beyond_a_chunk_are_computed_like_the_others(monkeypatch):
    model = tiny_bert()
    hidden = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    whole = RowTargets(Head.of(model), (1.0, 2.0))
    monkeypatch.setattr("stages.row_targets._LOGITS_BYTES", {"cpu": 4 * 60 * 20, "cuda": 0})
    monkeypatch.setattr("stages.row_targets._CACHE_BYTES", 4 * 60 * 7)
    pieces = RowTargets(Head.of(model), (1.0, 2.0))
    with torch.inference_mode():
        one = list(whole.of(hidden, None, EXACT))
        many = list(pieces.of(hidden, None, EXACT))
    assert [part.stop - part.start for part, _ in many] == [7, 7, 6, 7, 7, 6, 7, 3]
    assert [part for part, _ in one] == [slice(0, 50)]
    for name, expected in one[0][1].items():
        found = torch.cat([values[name] for _, values in many])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:DeprecationWarning"
)  # torch's own compiler imports what torch deprecates
def test_a_compiled_teacher_says_the_same_up_to_rounding():
    teacher = tiny_bert()
    compiled = TargetsComputer(teacher, temperatures=(1.0, 2.0), pad_id=0, batch_tokens=32, compiled=True)
    found, expected = (each.compute(seen(), EXACT).targets() for each in (compiled, computer()))
    np.testing.assert_allclose(found.stat, expected.stat, atol=2e-5)
    np.testing.assert_allclose(found.encoded["hidden"], expected.encoded["hidden"], atol=2e-5)
