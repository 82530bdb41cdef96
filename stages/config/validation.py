"""Parameters of the validation while a student trains: when, on how much, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stages.config.base import require

LOWER_IS_BETTER = {
    "kl_masked": True,
    "kl_all": True,
    "mlm_loss": True,
    "clm_loss": True,
    "agreement_masked": False,
    "agreement_all": False,
}
"""The figures that a training can be judged by."""

_ONLY_MASKED, _ONLY_CAUSAL = ("kl_masked", "mlm_loss", "agreement_masked"), ("clm_loss",)
"""Those that there are of students of one kind of teacher."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Figures on the cached validation split while a student trains. They change no weights; `patience` and `keep` choose some."""

    steps: int | None = None
    """Optimizer steps from one validation to the next, and there is one after the last step; null: the finished student alone is
    validated."""
    sequences: int | None = None
    """How many of the split's sequences, the first ones; null: all. The figures of the finished student are of all."""
    metric: Literal["kl_masked", "kl_all", "mlm_loss", "clm_loss", "agreement_masked", "agreement_all"] = "kl_masked"
    """What `keep` and `patience` go by."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the student: those of the last step, or those of the validation with the best `metric`."""
    patience: int | None = None
    """End the training once `metric` has not improved in so many validations; null: never."""
    min_delta: float = 0.0
    """By how much `metric` must improve for that."""

    def __post_init__(self) -> None:
        for name in ("steps", "sequences", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.validation.{name}", value, "null or 1 and more")
        require(self.min_delta >= 0, "train.validation.min_delta", self.min_delta, "0 or more")
        if self.steps is None:
            reason = "as train.validation.steps is null: nothing is validated before the end"
            require(self.keep == "last", "train.validation.keep", self.keep, f"last, {reason}")
            require(self.patience is None, "train.validation.patience", self.patience, f"null, {reason}")

    @property
    def chooses(self) -> bool:
        """Whether the published weights depend on the validations."""
        return self.keep == "best" or self.patience is not None

    @property
    def lower_is_better(self) -> bool:
        """Whether `metric` falls as the student gets better."""
        return LOWER_IS_BETTER[self.metric]


def check_metric(validation: ValidationConfig, objective: Literal["masked", "causal"]) -> None:
    """Refuse a figure that a student of such a teacher does not have, where any is looked at. Raises `ConfigError`."""
    absent = _ONLY_MASKED if objective == "causal" else _ONLY_CAUSAL
    present = [name for name in LOWER_IS_BETTER if name not in absent]
    require(
        validation.steps is None or validation.metric in present,
        "train.validation.metric",
        validation.metric,
        f"{', '.join(present)}, as teacher.objective is {objective}",
    )
