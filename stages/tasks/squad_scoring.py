"""SQuAD v1.1's official figures (Rajpurkar et al. 2016, evaluate-v1.1.py): exact match and F1 over words, answers normalised."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without punctuation and articles, one space between words."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(found: str, expected: str) -> float:
    """1 where the two are equal once normalised, else 0."""
    return float(normalised(found) == normalised(expected))


def f1(found: str, expected: str) -> float:
    """Harmonic mean of precision and recall over words, counted as often as they occur; 0 where they share none."""
    ours, theirs = normalised(found).split(), normalised(expected).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def best(score: Callable[[str, str], float], found: str, expected: Iterable[str]) -> float:
    """The score against that of the reference answers to which the answer comes closest."""
    return max(score(found, answer) for answer in expected)
