"""Names of the figures: held out, computed by `stages.held_out`, and of downstream tasks. Knows no torch: tables and the report read it."""

from __future__ import annotations

from typing import Literal

Objective = Literal["masked", "causal"]
"""Of the teacher: which tokens are predicted."""

LABELS = {
    "kl_masked": "KL, masked",
    "kl_all": "KL, all",
    "agreement_masked": "agreement, masked",
    "agreement_all": "agreement, all",
    "mlm_loss": "MLM loss",
    "masked_accuracy": "masked accuracy",
    "clm_loss": "CLM loss",
    "next_accuracy": "next-token accuracy",
    "hidden_cosine": "hidden cosine",
}
"""The figures that say how good a student is, and what tables call them."""

TASK_FIGURES = {
    "exact_match": "exact match",
    "f1": "F1",
    "accuracy": "accuracy",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "accuracy_matched": "accuracy, matched",
    "accuracy_mismatched": "accuracy, mismatched",
}
"""Official figure -> its name in the table, in the order in which they stand there."""

PREDICTION: dict[Objective, tuple[str, str, str]] = {
    "masked": ("mlm_loss", "masked_accuracy", "masked_tokens"),
    "causal": ("clm_loss", "next_accuracy", "predicted_tokens"),
}
"""Of the tokens that are predicted: cross-entropy, share of correct ids, and their number."""

_OF_MASKED_TOKENS = ("kl_masked", "agreement_masked")

OF_THE_TEACHER = {"kl_masked": 0.0, "kl_all": 0.0, "agreement_masked": 1.0, "agreement_all": 1.0, "hidden_cosine": 1.0}
"""The teacher compared with itself."""


def labels_of(objective: Objective) -> dict[str, str]:
    """Those of `LABELS` that there are of students of such a teacher: a causal one masks nothing."""
    other: Objective = "causal" if objective == "masked" else "masked"
    absent = {*PREDICTION[other], *(() if objective == "masked" else _OF_MASKED_TOKENS)}
    return {name: label for name, label in LABELS.items() if name not in absent}


def closest(objective: Objective) -> tuple[str, str, str]:
    """The three figures to look at first: KL, agreement, and loss on the tokens that are predicted."""
    kind = "masked" if objective == "masked" else "all"
    return f"kl_{kind}", f"agreement_{kind}", PREDICTION[objective][0]
