import pytest

from stages.config import ConfigError, cache_spec, load_config, to_plain
from tests.stages.ensembles import SHARES, with_second
from tests.tiny import tiny_params


def config(**overrides):
    return load_config(tiny_params(**with_second(**overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {"ensemble": {"secnd": 0.0}}}, r"train.ensemble has 'secnd', .*; did you mean second\?"),
        ({"shares": {"second": 1.0}}, "train.ensemble is .*; allowed: teacher, whose cache has the student's inputs"),
        ({"shares": {"teacher": 1.0}}, "and one or more of teachers"),
        ({"shares": {"teacher": 0.5, "second": 0.4}}, r"shares that sum to 1 \(these to 0.9\)"),
        ({"shares": {"teacher": 1.5, "second": -0.5}}, "train.ensemble.teacher is 1.5; allowed: 0 <= x <= 1"),
        (
            {"teachers": {"teacher": tiny_params()["teacher"]}},
            "teachers has 'teacher'; allowed: names of Latin letters",
        ),
        ({"teachers": {"a/b": tiny_params()["teacher"]}}, "teachers has 'a/b'; allowed: names of Latin letters"),
        ({"teachers": {"second": {"sorce": "load"}}}, r"unknown key teachers.second.sorce; did you mean source\?"),
        (
            {"teachers": {"second": {"source": "load", "objective": "causal", "load": {"path": "x"}}}},
            "teachers.second.objective is 'causal'; allowed: masked, as teacher.objective is",
        ),
        ({"train": {"weights": {"hidden": 1.0}}}, "train.weights.hidden is 1.0; allowed: 0, as train.ensemble is set"),
        ({"train": {"hidden_projection": True}}, "train.hidden_projection is true; allowed: false, as train.ensemble"),
        (
            {"train": {"layer_map": [[1, 1]]}, "cache": {"hidden_layers": [1, 2]}},
            "train.layer_map is .*; allowed: null, as train.ensemble is set",
        ),
    ],
)
def test_an_ensemble_that_is_none_is_refused_with_the_reason(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(**overrides)


def test_the_spec_of_a_further_teachers_cache_has_that_teacher_and_all_else_alike():
    whole = config()
    main, second = cache_spec(whole), cache_spec(whole.of_teacher("second"))
    assert second["teacher"]["train"] == to_plain(whole.teachers["second"].train) != main["teacher"]["train"]
    assert {**second, "teacher": main["teacher"]} == main


def test_a_further_teacher_does_not_rename_the_main_ones_cache():
    assert cache_spec(config()) == cache_spec(load_config(tiny_params()))


def test_a_further_teacher_may_be_too_small_for_the_students_which_are_made_of_the_main_one():
    small = config(
        teachers={"second": {"train": {"layers": 1, "hidden_size": 16}}}, students={"half": {"layer_map": [1]}}
    )
    assert small.of_teacher("second").teacher.train.layers == 1


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"train": {"steps": 0}}, "teachers.second.train.steps is 0; allowed: 1 or more"),
        ({"train": {"seed": -1}}, "teachers.second.train.seed is -1"),
        (
            {"train": None},
            r"teachers.second.train is null; allowed: its settings \(.*, layers, .*\), as teachers.second.source is train",
        ),
        (
            {"train": {"hidden_size": 31}},
            r"teachers.second.train.hidden_size is 31; allowed: a multiple of teachers.second.train.attention_heads \(2\)",
        ),
        (
            {"source": "adapt", "load": {"path": "x"}},
            r"teachers.second.adapt is null; allowed: its settings \(.*\), as teachers.second.source is adapt",
        ),
        ({"load": {}}, r"teachers.second.load is {}; allowed: one of path \(a folder\), hub_id .* and package$"),
        ({"load": {"hub_id": "x"}}, "teachers.second.load.revision is null"),
        (
            {"train": {"max_positions": 8}},
            r"teachers.second: tokenize.sequence_tokens is 16; .* \(teachers.second.train.max_positions = 8\)",
        ),
    ],
)
def test_what_is_wrong_with_a_further_teacher_is_said_with_its_key_before_any_work(teacher, message):
    for shares in (None, SHARES):
        with pytest.raises(ConfigError, match=f"^{message}"):
            config(shares=shares, teachers={"second": teacher})


def test_what_is_wrong_with_the_main_teacher_or_a_student_is_said_with_its_own_key():
    with pytest.raises(ConfigError, match=r"^teacher\.train\.steps is 0"):
        config(teacher={"train": {"steps": 0}})
    with pytest.raises(ConfigError, match=r"^students\.half\.layers is 0"):
        config(students={"half": {"layers": 0}})
    with pytest.raises(ConfigError, match=r"^tokenize\.load is {}"):
        config(tokenize={"load": {}})


INSIDE_OF_THE_MAIN_ONE = [
    {"train": {"weights": {"hidden": 1.0}, "layer_map": [[1, 2]]}},
    {
        "cache": {"attention_vectors": ["queries", "keys", "values"]},
        "train": {"weights": {"relations": 1.0}, "relations": {"heads": 4, "teacher_block": 2}},
    },
    {
        "cache": {"attention_vectors": ["queries", "keys"]},
        "train": {"weights": {"attention": 1.0}, "attention_map": [[1, 2]]},
    },
    {"cache": {"hidden_layers": [1, 2]}},
]


@pytest.mark.parametrize("overrides", INSIDE_OF_THE_MAIN_ONE)
def test_losses_on_the_main_teachers_layers_do_not_concern_one_that_no_ensemble_names(overrides):
    assert config(shares=None, **overrides).of_teacher("second").teacher.train.layers == 3


def test_layers_to_be_cached_have_to_be_there_in_every_teacher_and_the_last_one_where_it_is_learned_from():
    with pytest.raises(ConfigError, match=r"teachers.second: cache.hidden_layers is \[1, 2\]; .* ends in 3"):
        config(cache={"hidden_layers": [1, 2]})
    with pytest.raises(ConfigError, match=r"teachers.second: cache.hidden_layers is \[2\]; allowed: 0 to 1, as the"):
        config(shares=None, cache={"hidden_layers": [2]}, teachers={"second": {"train": {"layers": 1}}})


def test_a_further_teacher_that_is_not_declared_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"teacher 'secnd' is not in teachers; did you mean second\?"):
        config().of_teacher("secnd")
    with pytest.raises(ConfigError, match="teacher 'second' is not in teachers; it declares none"):
        load_config(tiny_params()).of_teacher("second")


def test_parameters_come_back_from_json_as_they_were():
    assert load_config(to_plain(config())) == config()
    assert "teachers" not in to_plain(load_config(tiny_params()))
    assert "ensemble" not in to_plain(load_config(tiny_params()))["train"]
