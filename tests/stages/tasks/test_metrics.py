"""Against values that are published with the libraries, or worked out by hand."""

import numpy as np
import pytest

from stages.tasks.metrics import accuracy, f1, matthews, pearson, spearman


def test_accuracy_is_the_share_of_right_labels():
    assert accuracy(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2])) == 0.75


def test_f1_is_that_of_class_1():
    # 2 found of which 1 is right, 3 there: precision 1/2, recall 1/3
    assert f1(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 1])) == pytest.approx(0.4)
    assert f1(np.array([1, 0]), np.array([0, 0])) == 0.0


def test_matthews_correlation_has_the_value_in_scikit_learns_documentation():
    assert matthews(np.array([1, 1, 1, 0]), np.array([1, 0, 1, 1])) == pytest.approx(-1 / 3)
    assert matthews(np.array([1, 0, 1]), np.array([1, 1, 1])) == 0.0


def test_correlations_have_the_values_in_scipys_documentation():
    steps = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert pearson(steps, np.array([10, 9, 2.5, 6, 4])) == pytest.approx(-0.7426106572325057)
    assert spearman(steps, np.array([5, 6, 7, 8, 7])) == pytest.approx(0.8207826816681233)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_model_that_says_the_same_to_all_has_no_correlation(correlation):
    assert correlation(np.array([1.0, 2.0]), np.array([3.0, 3.0])) == 0.0
