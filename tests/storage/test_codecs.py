import dataclasses

import numpy as np
import pytest

from storage import decode_logits, decode_vectors, encode_hidden, encode_logits, encode_vectors
from storage.codecs import Bfloat16, FloatCodec, Int8Groups, LogitGrid, logits_codec, row_blocks, vector_codec
from tests.storage.build import BALANCED, DRAWS_ONLY, EXACT, LAYOUTS, LOGITS_ONLY, TAIL, THRESHOLD


@pytest.mark.parametrize(
    ("layout", "hidden", "logits"),
    [
        (EXACT, FloatCodec("hidden", "float16"), FloatCodec("top_logits", "float16")),
        (BALANCED, Int8Groups(16), LogitGrid(0.125)),
        (dataclasses.replace(BALANCED, grid_step=0.5), Int8Groups(16), LogitGrid(0.5)),
        (THRESHOLD, Bfloat16(), LogitGrid(0.125)),
        (TAIL, Int8Groups(24), FloatCodec("top_logits", "float16")),
        (DRAWS_ONLY, None, None),
    ],
)
def test_the_layout_says_which_codecs_are_used(layout, hidden, logits):
    assert vector_codec(layout, "hidden") == hidden
    assert logits_codec(layout) == logits


@pytest.mark.parametrize("name", ["lossless", "exact", "balanced", "masked", "threshold"])
def test_decoding_into_given_memory_equals_decoding_into_new(name):
    layout = LAYOUTS[name]
    generator = np.random.default_rng(0)
    hidden = generator.standard_normal((9, 2, 24)).astype(np.float32)
    arrays = encode_hidden(layout, hidden)
    out = np.empty_like(hidden)
    assert decode_vectors(layout, "hidden", arrays, out) is out
    assert np.array_equal(out, decode_vectors(layout, "hidden", arrays))
    logits = -np.sort(-generator.standard_normal((9, 5)), axis=1).astype(np.float32)
    arrays = {**encode_logits(layout, logits), "stat": logits[:, :1]}
    out = np.empty_like(logits)
    assert decode_logits(layout, arrays, out) is out
    assert np.array_equal(out, decode_logits(layout, arrays))


@pytest.mark.parametrize("layout", [BALANCED, THRESHOLD], ids=["int8", "bfloat16"])
def test_many_rows_are_coded_as_few_rows_are(layout):
    hidden = np.random.default_rng(0).standard_normal((300, 1, 2048)).astype(np.float32)
    whole = encode_hidden(layout, hidden)
    assert len(list(row_blocks(300, 2048))) > 1
    for row in (0, 127, 128, 299):
        alone = encode_hidden(layout, hidden[row : row + 1])
        assert all(np.array_equal(whole[name][row], alone[name][0]) for name in whole)
    assert np.array_equal(decode_vectors(layout, "hidden", whole)[299:], decode_vectors(layout, "hidden", alone))


@pytest.mark.parametrize("name", ["threshold", "tail"])
def test_ragged_logits_are_coded_with_the_lengths_of_their_rows(name):
    logits = np.array([3.0, 1.0, -2.0, 5.0, 5.0, 0.25], np.float32)  # all on the grid
    count = np.array([3, 1, 2], np.uint8)
    stat = np.array([[3.0], [5.0], [5.0]], np.float32)
    arrays = encode_logits(LAYOUTS[name], logits, count)
    decoded = decode_logits(LAYOUTS[name], {**arrays, "stat": stat, "top_count": count})
    assert decoded.tolist() == logits.tolist()


@pytest.mark.parametrize("name", ["attention", "attention_only"])
def test_vectors_of_attention_are_coded_as_hidden_states_are_under_names_of_their_own(name):
    layout = LAYOUTS[name]
    values = np.random.default_rng(0).standard_normal((9, 2, 20)).astype(np.float32)
    for part in layout.attention_vectors:
        arrays = encode_vectors(layout, part, values)
        as_hidden = encode_hidden(dataclasses.replace(layout, hidden=layout.attention_coding), values)
        assert arrays.keys() == {found.replace("hidden", part) for found in as_hidden}
        for found, array in as_hidden.items():
            assert np.array_equal(arrays[found.replace("hidden", part)], array)
        bound = vector_codec(layout, part).error_bound(values)
        assert np.all(np.abs(decode_vectors(layout, part, arrays).astype(np.float64) - values) <= bound)


def test_what_a_layout_does_not_cache_cannot_be_coded():
    with pytest.raises(ValueError, match="caches no keys"):
        encode_vectors(LAYOUTS["attention_only"], "keys", np.zeros((1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="caches no hidden states"):
        encode_hidden(LOGITS_ONLY, np.zeros((1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="caches no logits"):
        decode_logits(LAYOUTS["hidden_only"], {})
