"""What the DistilBERT paper reports: the figures that a run's own are set beside.

Sanh, Debut, Chaumond and Wolf (2019), "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
arXiv:1910.01108. Its scores are medians of five runs on the dev sets of GLUE (table 1), accuracy on IMDb's test set and
exact match and F1 on SQuAD's dev set (table 2); for a task of GLUE that has two figures it gives one,
without saying which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SOURCE = "Sanh et al. 2019, arXiv:1910.01108"

TEACHER, STUDENT, DISTILLED_AGAIN = "BERT-base", "DistilBERT", "DistilBERT (D)"
"""The paper's names; the last is the student that was distilled a second time while it was fine-tuned."""

GLUE_TASKS = ("CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B", "WNLI")

_GLUE = {
    TEACHER: (56.3, 86.7, 88.6, 91.8, 89.6, 69.3, 92.7, 89.0, 53.5),
    STUDENT: (51.3, 82.2, 87.5, 89.2, 88.5, 59.9, 91.3, 86.9, 56.3),
}

SCORES: Mapping[str, Mapping[str, float]] = {
    TEACHER: {**dict(zip(GLUE_TASKS, _GLUE[TEACHER], strict=True)), "IMDb": 93.46, "SQuAD": 88.5},
    STUDENT: {**dict(zip(GLUE_TASKS, _GLUE[STUDENT], strict=True)), "IMDb": 92.82, "SQuAD": 85.8},
    DISTILLED_AGAIN: {"SQuAD": 86.9},
}
"""In %, by model and task, from tables 1 and 2; SQuAD's is F1."""

MACRO: Mapping[str, float] = {TEACHER: 79.5, STUDENT: 77.0}
"""GLUE's macro score as table 1 has it; the mean of BERT-base's nine figures there is 79.7."""

EXACT_MATCH: Mapping[str, float] = {TEACHER: 81.2, STUDENT: 77.7, DISTILLED_AGAIN: 79.1}
"""SQuAD v1.1, in %, from table 2."""

PARAMETERS: Mapping[str, float] = {TEACHER: 110e6, STUDENT: 66e6}
"""Table 3."""

PASS_SECONDS: Mapping[str, float] = {TEACHER: 668.0, STUDENT: 410.0}
"""Table 3: over STS-B's dev set, one pair at a time, on a CPU (Xeon E5-2690 v3)."""

ABLATION: Mapping[str, float] = {
    "no KD": -2.96,
    "no cosine": -1.46,
    "no MLM": -0.31,
    "random initial weights": -3.69,
}
"""Table 4: by how much GLUE's macro score, in points, is another than that of the triple loss from the teacher's weights."""


def mean_score(model: str, tasks: Sequence[str]) -> float | None:
    """The paper's mean over these tasks, in %: as published where they are all of GLUE's, else of its figures; None where it lacks one."""
    scores = SCORES[model]
    if set(tasks) == set(GLUE_TASKS):
        return MACRO.get(model)
    if not tasks or not all(task in scores for task in tasks):
        return None
    return sum(scores[task] for task in tasks) / len(tasks)
