"""The official figures of the classification tasks, by scikit-learn and SciPy. All are fractions of 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]
Numbers = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]


def accuracy(expected: Numbers, found: Numbers) -> float:
    """Share of the labels that are right."""
    return float(accuracy_score(expected, found))


def f1(expected: Numbers, found: Numbers) -> float:
    """Harmonic mean of precision and recall of the class 1; 0 where nothing of it is found."""
    return float(f1_score(expected, found, zero_division=0))


def matthews(expected: Numbers, found: Numbers) -> float:
    """Matthews' correlation of two classes, -1 to 1; 0 where only one is found."""
    return float(matthews_corrcoef(expected, found))


def pearson(expected: Numbers, found: Numbers) -> float:
    """Pearson's correlation, -1 to 1; 0 where all scores are the same, which has none."""
    return 0.0 if _constant(expected, found) else float(pearsonr(expected, found).statistic)


def spearman(expected: Numbers, found: Numbers) -> float:
    """Spearman's rank correlation, -1 to 1; 0 where all scores are the same, which has none."""
    return 0.0 if _constant(expected, found) else float(spearmanr(expected, found).statistic)


def _constant(*scores: Numbers) -> bool:
    return any(len(np.unique(numbers)) < 2 for numbers in scores)


METRICS: dict[Metric, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
