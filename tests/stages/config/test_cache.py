import dataclasses

import pytest

from stages.config import RUNGS, ConfigError, cache_spec, load_config
from storage import Layout
from tests.tiny import tiny_params

SHAPE = {"teacher_layers": 2, "hidden_size": 32, "vocabulary_size": 100}
DRAWS = {"kd_source": "draws", "weights": {"cos": 0.0}}
"""What a training from the `small` preset is."""


def config_of(train=None, **cache):
    return load_config(tiny_params(cache=cache, train=train or {}))


def test_params_from_before_the_ladder_stay_valid_and_mean_the_same_cache():
    values = tiny_params()
    for name in RUNGS:
        del values["cache"][name]
    del values["train"]["tail"]
    old = load_config(values)
    assert old == config_of()
    assert set(cache_spec(old)["cache"]) == {
        "attention", "hidden", "logits", "positions", "precision", "sequences", "shard_tokens", "temperatures", "top_k",
        "yardstick",
    }  # fmt: skip


def test_a_key_set_to_what_it_is_anyway_leaves_the_identity_as_it_is():
    spelled_out = {"grid_step": 0.125, "hidden_group": 64, "draws": 0, "selection": "top_k"}
    assert cache_spec(config_of(preset="balanced", **spelled_out)) == cache_spec(config_of(preset="balanced"))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_group": 32},
        {"hidden_group": "row"},
        {"hidden_layers": [0, 2]},
        {"grid_step": 0.25},
        {"selection": "threshold", "threshold": 0.01},
        {"draws": 10},
        {"positions": "sampled", "position_fraction": 0.25},
        {"attention_vectors": ["queries", "keys"]},
        {"attention_vectors": ["values"], "attention_layers": [1], "attention_coding": "float16"},
    ],
    ids="-".join,
)
def test_every_rung_is_part_of_the_identity(changes):
    plain, changed = (cache_spec(config_of(preset="balanced", **some))["cache"] for some in ({}, changes))
    assert {name: value for name, value in changed.items() if plain.get(name) != value} == changes


def test_every_key_of_the_ladder_is_a_field_of_the_layout():
    assert set(RUNGS) <= {field.name for field in dataclasses.fields(Layout)}


def test_the_small_preset_draws_from_all_at_the_training_temperature_and_keeps_no_hidden_state():
    layout = config_of(preset="small", top_k=None, train=DRAWS).cache.layout("train", **SHAPE)
    assert layout == Layout(
        positions="all", hidden="none", hidden_layers=(), logits="grid", top_k=8, draws=50, draw_temperature=2.0
    )


def test_draws_alone_may_be_all_that_is_kept():
    layout = config_of(preset="small", logits="none", top_k=None, train=DRAWS).cache.layout("train", **SHAPE)
    assert (layout.logits, layout.top_k, layout.draws) == ("none", 0, 50)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_held_out_splits_are_exact_at_all_positions_whatever_train_is(split):
    cache = config_of(
        preset="balanced", positions="sampled", position_fraction=0.5, hidden_layers=[0, 2], hidden_group=8,
        selection="threshold", threshold=0.01, draws=20, draw_from="tail",
    ).cache  # fmt: skip
    assert cache.layout(split, **SHAPE) == Layout(
        positions="all", hidden="float16", hidden_layers=(2,), logits="float16", top_k=64
    )


def test_the_vectors_of_attention_are_of_the_last_block_in_int8_where_nothing_else_is_said():
    cache = config_of(attention_vectors=["queries", "keys"], hidden_group=16).cache
    layout = cache.layout("train", **SHAPE, attention_widths=(32, 16))
    assert layout.vectors(32) == {"hidden": 32, "queries": 32, "keys": 16}
    assert (layout.attention_layers, layout.attention_coding, layout.hidden_group) == ((2,), "int8", 16)
    for split in ("validation", "test"):
        assert cache.layout(split, **SHAPE, attention_widths=(32, 16)).attention_vectors == ()


def test_vectors_of_attention_may_be_all_that_is_kept():
    nothing_else = {"hidden": "none", "logits": "none", "top_k": None, "draws": 0}
    train = {"weights": {"kd": 0.0, "cos": 0.0}}
    layout = config_of(train, **nothing_else, attention_vectors=["values"]).cache.layout(
        "train", **SHAPE, attention_widths=(32,)
    )
    assert layout.vectors(32) == {"values": 32}


def test_one_scale_per_row_is_a_group_of_the_hidden_size():
    assert config_of(preset="balanced", hidden_group="row").cache.layout("train", **SHAPE).hidden_group == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"positions": "sampled"},
            r"cache.position_fraction is null; allowed: 0 < x < 1, as cache.positions is sampled",
        ),
        ({"positions": "sampled", "position_fraction": 1.0}, r"cache.position_fraction is 1.0; allowed: 0 < x < 1"),
        ({"position_fraction": 0.5}, r"cache.position_fraction is 0.5; allowed: null, as cache.positions is all"),
        ({"hidden_group": 32}, r"cache.hidden_group is 32; allowed: null, as cache.hidden is float16"),
        ({"hidden": "int8", "hidden_group": 0}, r"cache.hidden_group is 0; allowed: null, row, or an integer above 0"),
        ({"hidden_group": "rows"}, r"cache.hidden_group is 'rows'; allowed: an integer or row or null"),
        ({"hidden_group": True}, r"cache.hidden_group is true; allowed: an integer or row or null"),
        ({"hidden_layers": []}, r"cache.hidden_layers is \[\]; allowed: null or layer numbers from 0, ascending"),
        ({"hidden_layers": [2, 1]}, r"cache.hidden_layers is \[2, 1\]; allowed: .* ascending"),
        (
            {"hidden_layers": [1, 2, 3]},
            r"cache.hidden_layers is \[1, 2, 3\]; allowed: 0 to 2, as the teacher has 2 blocks",
        ),
        ({"hidden_layers": [0, 1]}, r"cache.hidden_layers is \[0, 1\]; allowed: a list that ends in 2"),
        ({"grid_step": 0.25}, r"cache.grid_step is 0.25; allowed: null, as cache.logits is float16"),
        ({"logits": "grid", "grid_step": 0.0}, r"cache.grid_step is 0.0; allowed: null or more than 0"),
        ({"selection": "threshold"}, r"cache.threshold is null; allowed: 0 < x < 1, as cache.selection is threshold"),
        ({"selection": "threshold", "threshold": 1.5}, r"cache.threshold is 1.5; allowed: 0 < x < 1"),
        (
            {"selection": "threshold", "threshold": 0.1, "top_k": 256},
            r"cache.top_k is 256; allowed: 1 to 255, as cache.selection is threshold",
        ),
        (
            {"selection": "threshold", "threshold": 0.1, "threshold_temperature": 3.0},
            r"cache.threshold_temperature is 3.0; allowed: one of cache.temperatures \(1.0, 2.0\)",
        ),
        (
            {"selection": "threshold", "threshold": 0.1, "logits": "none", "top_k": 0},
            r"cache.top_k is 0; allowed: 1 to 255, as cache.selection is threshold",
        ),
        ({"threshold": 0.1}, r"cache.threshold is 0.1; allowed: null, as cache.selection is not threshold"),
        ({"draws": 256}, r"cache.draws is 256; allowed: 0 to 255"),
        ({"draws": -1}, r"cache.draws is -1; allowed: 0 to 255"),
        ({"draw_from": "tail"}, r"cache.draw_from is 'tail'; allowed: null, as cache.draws is 0"),
        (
            {"draws": 5, "draw_from": "tail", "logits": "none", "top_k": 0},
            r"cache.draw_from is 'tail'; allowed: all, as cache.logits is none",
        ),
        (
            {"draws": 5, "draw_temperature": 3.0},
            r"cache.draw_temperature is 3.0; allowed: one of cache.temperatures \(1.0, 2.0\)",
        ),
        (
            {"preset": "small", "temperatures": [1.0]},
            r"cache.draw_temperature is 2.0; allowed: one of cache.temperatures \(1.0\)",
        ),
        (
            {"attention_vectors": ["keys", "queries"]},
            r"cache.attention_vectors is \['keys', 'queries'\]; allowed: null or some of queries, keys, values, in this order",
        ),
        ({"attention_vectors": []}, r"cache.attention_vectors is \[\]; allowed: null or some of"),
        ({"attention_vectors": ["maps"]}, r"cache.attention_vectors\[0\] is 'maps'; allowed: queries, keys, values"),
        (
            {"attention_layers": [1]},
            r"cache.attention_layers is \(1,\); allowed: null, as cache.attention_vectors is null",
        ),
        (
            {"attention_coding": "int8"},
            r"cache.attention_coding is 'int8'; allowed: null, as cache.attention_vectors is",
        ),
        (
            {"attention_vectors": ["keys"], "attention_coding": "grid"},
            r"cache.attention_coding is 'grid'; allowed: float32, float16, bfloat16, int8",
        ),
        (
            {"attention_vectors": ["keys"], "attention_layers": [0, 1]},
            r"cache.attention_layers is \[0, 1\]; allowed: null or numbers of blocks from 1",
        ),
        (
            {"attention_vectors": ["keys"], "attention_layers": [1, 3]},
            r"cache.attention_layers is \[1, 3\]; allowed: 1 to 2, as the teacher has 2 blocks",
        ),
        (
            {"attention_vectors": ["keys"], "positions": "masked"},
            r"cache.positions is 'masked'; allowed: all, as cache.attention_vectors are cached",
        ),
        (
            {"attention_vectors": ["keys"], "compile": True},
            r"cache.compile is true; allowed: false, as cache.attention",
        ),
        (
            {"attention_vectors": ["keys"], "attention_coding": "float16", "hidden_group": 8},
            r"cache.hidden_group is 8; allowed: null, as cache.hidden is float16",
        ),
        ({"hidden": "none", "logits": "none", "top_k": 0}, r"cache.hidden is 'none'; .*nothing would be kept"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)
