"""Names of the held-out figures; `stages.held_out` computes them. Knows no torch: tables and the report read it."""

from __future__ import annotations

LABELS = {
    "kl_masked": "KL, masked",
    "kl_all": "KL, all",
    "agreement_masked": "agreement, masked",
    "agreement_all": "agreement, all",
    "mlm_loss": "MLM loss",
    "masked_accuracy": "masked accuracy",
    "hidden_cosine": "hidden cosine",
}
"""The figures that say how good a student is, and what tables call them."""

OF_THE_TEACHER = {"kl_masked": 0.0, "kl_all": 0.0, "agreement_masked": 1.0, "agreement_all": 1.0, "hidden_cosine": 1.0}
"""The teacher compared with itself."""
