import pytest

from stages.cache_coding import coding_of
from stages.config import load_config
from tests.tiny import tiny_params


@pytest.mark.parametrize(
    ("cache", "name", "words"),
    [
        ({"preset": "balanced"}, "hidden states", "int8 in groups of 64"),
        ({"hidden": "int8", "hidden_group": "row"}, "hidden states", "int8, one scale per row"),
        ({"attention_vectors": ["queries", "keys"]}, "vectors of attention", "queries, keys of the last block, int8"),
        (
            {"preset": "balanced", "positions": "sampled", "position_fraction": 0.25},
            "positions",
            "masked, and 25% of the others",
        ),
    ],
)
def test_each_coding_has_words(cache, name, words):
    assert dict(coding_of(load_config(tiny_params(cache=cache)).cache))[name] == words
