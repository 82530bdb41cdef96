import pytest

from stages.report_page import published
from stages.tasks import IN_MACRO, TASKS


def test_the_papers_tasks_are_called_as_those_that_can_be_fine_tuned():
    assert set(published.GLUE_TASKS) == set(IN_MACRO)
    assert all(set(scores) <= set(TASKS) for scores in published.SCORES.values())


@pytest.mark.parametrize("model", [published.TEACHER, published.STUDENT])
def test_the_papers_macro_score_is_the_mean_of_its_figures_as_far_as_it_rounds(model):
    figures = [published.SCORES[model][task] for task in published.GLUE_TASKS]
    assert sum(figures) / len(figures) == pytest.approx(published.MACRO[model], abs=0.25)
    assert published.mean_score(model, published.GLUE_TASKS) == published.MACRO[model]


def test_a_mean_over_tasks_that_the_paper_lacks_is_none():
    assert published.mean_score(published.DISTILLED_AGAIN, ["SQuAD", "IMDb"]) is None
    assert published.mean_score(published.STUDENT, []) is None
    assert published.mean_score(published.STUDENT, ["IMDb", "SQuAD"]) == pytest.approx(89.31)
