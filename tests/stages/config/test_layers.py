import pytest

from stages.config import ConfigError, RelationsConfig, load_config, to_plain
from tests.tiny import tiny_params

ALL = ["queries", "keys", "values"]
CACHED = {"hidden_layers": [0, 1, 2], "attention_vectors": ALL, "attention_layers": [1, 2]}
NARROW = {"narrow": {"architecture": "distilbert", "initialise": "random", "layers": 1, "hidden_size": 16,
                     "attention_heads": 4, "feed_forward_size": 32, "dropout": 0.0, "seed": 0}}  # fmt: skip
RELATIONS = {"weights": {"relations": 1.0}, "relations": {"heads": 8}}
LSTM = {
    "lstm": {
        "architecture": "bilstm",
        "initialise": "teacher",
        "layers": 5,
        "layer_map": None,
        "dropout": 0.0,
        "seed": 0,
    }
}
ATTENTION = {"weights": {"attention": 1.0}, "attention_map": [[1, 2]]}


def load(train, cache=CACHED):
    return load_config(tiny_params(train=train, cache=cache, students=NARROW))


@pytest.mark.parametrize(
    ("train", "cache"),
    [
        ({"weights": {"hidden": 1.0}}, {}),
        ({"weights": {"hidden": 1.0}, "layer_map": [[1, 2]]}, {}),
        ({"weights": {"hidden": 1.0}, "layer_map": [[0, 0], [1, 2]]}, CACHED),
        ({"weights": {"kd": 0.0}, "layer_map": [[1, 1]]}, {"hidden_layers": [0, 1]}),
        (RELATIONS, CACHED),
        (RELATIONS, {"attention_vectors": ALL}),
        ({**RELATIONS, "relations": {"heads": 8, "teacher_block": 1, "parts": ["values"]}}, CACHED),
        (ATTENTION, {"attention_vectors": ["queries", "keys"]}),
        ({**RELATIONS, "student": "narrow", "weights": {"cos": 0.0, "relations": 1.0}}, CACHED),
        ({"student": "narrow", "weights": {"hidden": 1.0}, "hidden_projection": True}, CACHED),
        ({"layer_map": [[0, 5]], "attention_map": [[9, 9]], "weights": {"cos": 0.0}}, {}),
    ],
)
def test_losses_on_what_is_cached_and_comparable_are_taken(train, cache):
    config = load(train, cache)
    assert load_config(to_plain(config)) == config


@pytest.mark.parametrize(
    ("train", "cache", "message"),
    [
        (
            {"layer_map": [[1, 1]]},
            {},
            r"train.layer_map is 1; allowed: of the teacher's, those in cache.hidden_layers .null: the last.: 2",
        ),
        (
            {"layer_map": [[0, 0], [1, 2]]},
            {},
            r"train.layer_map is \[\[0, 0\], \[1, 2\]\]; .*make a cache with cache.hidden_layers: \[0, 2\]",
        ),
        (
            {"layer_map": [[0, 0], [1, 1]]},
            {"hidden_layers": [0, 2]},
            r"train.layer_map is 1; allowed: of the teacher's, those in cache.hidden_layers: 0, 2",
        ),
        (
            {"weights": {"cos": 0.0, "hidden": 1.0}, "kd_source": "top_k"},
            {"hidden": "none"},
            r"train.weights.hidden is 1.0; allowed: 0, as cache.hidden is none",
        ),
        (
            RELATIONS,
            {},
            r"train.weights.relations is 1.0; allowed: 0, as queries and keys and values are not .*\[queries, keys, values\]",
        ),
        (
            {**RELATIONS, "relations": {"heads": 8, "parts": ["queries", "values"]}},
            {"attention_vectors": ["queries", "keys"]},
            r"as values are not cached; .*cache.attention_vectors: \[queries, keys, values\]",
        ),
        (ATTENTION, {"attention_vectors": ["queries"]}, r"train.weights.attention is 1.0; allowed: 0, as keys are not"),
        (
            {**RELATIONS, "relations": {"heads": 8, "teacher_block": 2}},
            {"attention_vectors": ALL, "attention_layers": [1]},
            r"train.relations.teacher_block is 2; allowed: of the teacher's, those in cache.attention_layers: 1",
        ),
        (
            {**ATTENTION, "attention_map": [[1, 1]]},
            {"attention_vectors": ALL},
            r"train.attention_map is 1; allowed: of the teacher's, those in cache.attention_layers .null: the last.: 2",
        ),
    ],
)
def test_losses_on_what_is_not_cached_are_refused_and_what_to_cache_is_said(train, cache, message):
    with pytest.raises(ConfigError, match=message):
        load(train, cache)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"layer_map": [[2, 2]]},
            r"train.layer_map is 2; allowed: of the student's, 0 to 1, its number of blocks",
        ),
        (
            {**RELATIONS, "relations": {"heads": 8, "student_block": 2}},
            r"train.relations.student_block is 2; allowed: of the student's, 1 to 1",
        ),
        (
            {**ATTENTION, "attention_map": [[2, 2]]},
            r"train.attention_map is 2; allowed: of the student's, 1 to 1, its number of blocks",
        ),
        (
            {**RELATIONS, "relations": {"heads": 5}},
            r"train.relations.heads is 5; allowed: a divisor of both widths, the student's 32 and the teacher's 32",
        ),
        (
            {"student": "narrow", "weights": {"cos": 0.0, "attention": 1.0}, "attention_map": [[1, 2]]},
            r"students.narrow.attention_heads is 4; allowed: 2 .the teacher's., .*; train.weights.relations compares as many",
        ),
        (
            {"student": "narrow"},
            r"students.narrow.hidden_size is 16; allowed: 32 .* as train.weights.cos is 1.0; or train.hidden_projection: true",
        ),
        (
            {"student": "narrow", "weights": {"cos": 0.0, "hidden": 2.0}},
            r"students.narrow.hidden_size is 16; .* as train.weights.hidden is 2.0; or train.hidden_projection: true",
        ),
    ],
)
def test_what_the_student_is_not_made_for_is_refused(train, message):
    with pytest.raises(ConfigError, match=message):
        load(train)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"layer_map": []},
            r"train.layer_map is \[\]; allowed: null, or pairs \[student, teacher\] of layers, 0 for the emb",
        ),
        ({"layer_map": [[1]]}, r"train.layer_map is \[\[1\]\]; allowed: null, or pairs"),
        ({"layer_map": [[1, 2], [1, 2]]}, r"train.layer_map is .*, each once"),
        ({"layer_map": [[-1, 2]]}, r"train.layer_map is \[\[-1, 2\]\]; allowed: null, or pairs"),
        ({"layer_map": [1, 2]}, r"train.layer_map\[0\] is 1; allowed: a list, each item an integer"),
        ({"attention_map": [[0, 1]]}, r"train.attention_map is \[\[0, 1\]\]; .* of blocks, counted from 1, each once"),
        ({"weights": {"relations": 1.0}}, r"train.relations is null; allowed: its settings \({heads: 48}, .* is 1.0"),
        ({"weights": {"attention": 1.0}}, r"train.attention_map is null; allowed: \[\[student block, teacher block\]"),
        ({**RELATIONS, "relations": {"heads": 0}}, "train.relations.heads is 0; allowed: 1 or more"),
        (
            {**RELATIONS, "relations": {"heads": 8, "student_block": 0}},
            "train.relations.student_block is 0; allowed: null or 1",
        ),
        (
            {**RELATIONS, "relations": {"heads": 8, "parts": []}},
            r"train.relations.parts is \[\]; allowed: null, or one or",
        ),
        (
            {**RELATIONS, "relations": {"heads": 8, "parts": ["maps"]}},
            r"train.relations.parts\[0\] is 'maps'; allowed: queries, ",
        ),
        (
            {**RELATIONS, "compile": True},
            r"train.compile is true; allowed: false with train.weights.relations: what lies",
        ),
        ({"layer_map": [[0, 0]], "compile": True}, r"train.compile is true; allowed: false with train.layer_map"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(train, message):
    with pytest.raises(ConfigError, match=message):
        load(train)


def test_a_student_without_self_attention_has_no_losses_on_it_and_as_many_blocks_as_it_likes():
    def load_lstm(train):
        return load_config(tiny_params(train={"student": "lstm", **train}, cache=CACHED, students=LSTM))

    assert load_lstm({}).student.layers == 5
    for train, term in ((RELATIONS, "relations"), (ATTENTION, "attention")):
        with pytest.raises(
            ConfigError, match=rf"train.weights.{term} is 1.0; allowed: 0, as students.lstm has no self"
        ):
            load_lstm(train)


def test_values_that_are_not_cached_need_not_be_compared():
    message = r"\[queries, keys, values\], or compare those that are: train.relations.parts: \[queries, keys\]"
    with pytest.raises(ConfigError, match=message):
        load(RELATIONS, {"attention_vectors": ["queries", "keys"]})


def test_all_parts_are_compared_unless_some_are_named():
    assert RelationsConfig(heads=2).compared == ("queries", "keys", "values")
    assert RelationsConfig(heads=2, parts=("values",)).compared == ("values",)


def test_an_identity_has_no_trace_of_losses_that_are_not_used():
    spelled_out = {
        "weights": {"hidden": 0.0, "relations": 0.0, "attention": 0.0},
        "layer_map": None,
        "hidden_projection": False,
        "relations": None,
        "attention_map": None,
    }
    assert to_plain(load(spelled_out).train) == tiny_params()["train"]
