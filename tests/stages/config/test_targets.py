import pytest

from stages.config import ConfigError, load_config
from tests.tiny import tiny_params

NO_COSINE = {"weights": {"cos": 0.0}}
TAIL = {"draws": 8, "draw_from": "tail", "draw_temperature": 2.0}


def check(cache, train):
    load_config(tiny_params(cache=cache, train=train))


@pytest.mark.parametrize(
    ("cache", "train"),
    [
        ({"preset": "small"}, {"kd_source": "draws", **NO_COSINE}),
        ({"preset": "small"}, {"kd_source": "top_k", **NO_COSINE}),
        ({"draws": 8, "draw_temperature": 2.0}, {"kd_source": "draws"}),
        (TAIL, {"kd_source": "top_k", "tail": "draws"}),
        (TAIL, {"kd_source": "top_k"}),
        (TAIL, {"kd_source": "hidden", "temperature": 3.0}),
        ({"hidden_layers": [0, 1]}, {"kd_source": "top_k", **NO_COSINE}),
    ],
)
def test_losses_whose_targets_are_cached_are_taken(cache, train):
    check(cache, train)


@pytest.mark.parametrize(
    ("cache", "train", "message"),
    [
        ({"preset": "small"}, {"kd_source": "draws"}, r"train.weights.cos is 1.0; allowed: 0, as cache.hidden is none"),
        (
            {"preset": "small"},
            NO_COSINE,
            r"train.kd_source is 'hidden'; allowed: top_k or draws, as cache.hidden is none",
        ),
        (
            {"preset": "small"},
            {"kd_source": "draws", "temperature": 1.0, **NO_COSINE},
            r"train.temperature is 1.0; allowed: 2.0, as train.kd_source is draws and cache.draw_temperature is 2.0",
        ),
        (
            {},
            {"kd_source": "draws"},
            r"train.kd_source is 'draws'; allowed: another value, or cache.draws above 0 .*none are cached now",
        ),
        (TAIL, {"kd_source": "draws"}, r"train.kd_source is 'draws'; .*draw_from all .those cached now are from tail"),
        (
            {"draws": 8, "draw_temperature": 2.0},
            {"kd_source": "top_k", "tail": "draws"},
            r"train.tail is 'draws'; .*draw_from tail .those cached now are from all",
        ),
        ({}, {"tail": "renormalise"}, r"train.tail is 'renormalise'; allowed: rest, as train.kd_source is hidden"),
        (
            {"preset": "small", "logits": "none", "top_k": None},
            {"kd_source": "top_k", **NO_COSINE},
            r"train.kd_source is 'top_k'; allowed: draws, as cache.logits is none",
        ),
    ],
)
def test_losses_whose_targets_are_not_cached_are_refused_by_name(cache, train, message):
    with pytest.raises(ConfigError, match=message):
        check(cache, train)
