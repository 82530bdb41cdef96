import pytest

from stages.errors import InputError
from stages.finetuning.results import (
    finished,
    kept_seeds,
    models_in,
    other_results,
    remove_others,
    result_file,
    results_of,
    scores_like,
)
from tests.stages.finetuning.scored import write_results

SCORES = {0: 0.8, 1: 0.9, 2: 0.9}


def test_a_result_counts_as_finished_for_its_own_identity_alone(tmp_path):
    write_results(tmp_path, "student", "RTE", {3: 0.5})
    file = result_file(tmp_path / "student", "RTE", 3)
    identity = {"seed": 3, "weights": "w", "data": {"train": "t", "evaluation": "d"}}
    assert finished(file, identity)["score"] == 0.5
    assert finished(file, {**identity, "weights": "other"}) is None
    assert finished(file.with_name("4.json"), identity) is None
    file.write_text("{half of", encoding="utf-8")
    assert finished(file, identity) is None


@pytest.mark.parametrize(("keep", "kept"), [("none", set()), ("best", {1}), ("all", {0, 1, 2})])
def test_of_the_fine_tuned_models_those_stay_that_are_asked_for(keep, kept, tmp_path):
    assert kept_seeds(keep, SCORES) == kept
    for seed in SCORES:
        (tmp_path / str(seed)).mkdir()
    remove_others(tmp_path, kept)
    assert {int(path.name) for path in tmp_path.iterdir()} == kept


def test_nothing_is_removed_where_there_is_nothing(tmp_path):
    remove_others(tmp_path / "absent", set())
    assert kept_seeds("best", {}) == set()


def test_results_of_other_parameters_are_found_with_what_differs(tmp_path):
    write_results(tmp_path, "student", "RTE", {0: 0.5, 1: 0.6}, training={"epochs": 3})
    identity = {"weights": "w", "training": {"epochs": 2}}
    others = other_results(tmp_path / "student", "RTE", identity)
    assert [file.name for file in others] == ["0.json", "1.json"]
    (difference,) = others[result_file(tmp_path / "student", "RTE", 0)]
    assert difference.startswith("training.epochs")
    assert other_results(tmp_path / "student", "RTE", {"weights": "w", "training": {"epochs": 3}}) == {}


def test_scores_of_the_same_parameters_are_found_whatever_their_seed(tmp_path):
    write_results(tmp_path, "student", "RTE", {0: 0.5, 1: 0.6})
    identity = {"seed": 7, "weights": "w", "data": {"train": "t", "evaluation": "d"}}
    assert scores_like(tmp_path / "student", "RTE", identity) == {0: 0.5, 1: 0.6}
    assert scores_like(tmp_path / "student", "RTE", {**identity, "weights": "other"}) == {}


def test_seeds_are_chosen_by_their_validation_where_there_is_one(tmp_path):
    beside = {seed: {"validation": {"score": 1.0 - seed / 10, "figures": {}}} for seed in (0, 1)}
    write_results(tmp_path, "student", "RTE", {0: 0.5, 1: 0.6}, beside=beside)
    identity = {"seed": 7, "weights": "w", "data": {"train": "t", "evaluation": "d"}}
    assert scores_like(tmp_path / "student", "RTE", identity) == {0: 1.0, 1: 0.9}


def test_results_of_weights_that_a_model_no_longer_has_are_left_out(tmp_path):
    write_results(tmp_path, "student", "RTE", {0: 0.5}, weights="old")
    write_results(tmp_path, "student", "WNLI", {1: 0.6, 0: 0.5}, weights="new")
    model, tasks = results_of(tmp_path / "student")
    assert model["weights"] == "new"
    assert {task: [result["seed"] for result in results] for task, results in tasks.items()} == {"WNLI": [0, 1]}


def test_a_damaged_result_is_named(tmp_path):
    write_results(tmp_path, "student", "RTE", {0: 0.5})
    result_file(tmp_path / "student", "RTE", 0).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"RTE/0\.json cannot be read .*; remove it and run: pipeline finetune"):
        results_of(tmp_path / "student")


def test_the_teacher_comes_first(tmp_path):
    for model in ("student", "another", "teacher"):
        write_results(tmp_path, model, "RTE", {0: 0.5})
    assert [folder.name for folder in models_in(tmp_path)] == ["teacher", "another", "student"]
