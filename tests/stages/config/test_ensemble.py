import pytest

from stages.config import ConfigError, cache_spec, load_config, to_plain
from tests.stages.ensembles import with_second
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


def test_what_a_further_teacher_lacks_is_said_with_its_name():
    with pytest.raises(
        ConfigError, match=r"teachers.second: tokenize.sequence_tokens is 16; allowed: at most the teacher's"
    ):
        config(teachers={"second": {"train": {"max_positions": 8}}}).of_teacher("second")
    with pytest.raises(ConfigError, match=r"teacher 'secnd' is not in teachers; did you mean second\?"):
        config().of_teacher("secnd")
    with pytest.raises(ConfigError, match="teacher 'second' is not in teachers; it declares none"):
        load_config(tiny_params()).of_teacher("second")


def test_parameters_come_back_from_json_as_they_were():
    assert load_config(to_plain(config())) == config()
    assert "teachers" not in to_plain(load_config(tiny_params()))
    assert "ensemble" not in to_plain(load_config(tiny_params()))["train"]
