"""What the process is told by its surroundings (torchrun's ranks, cores), and what it tells the libraries."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import Self

from stages.errors import ConfigError

QUIET = {
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",  # unset, tokenizers warns at every fork
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Read by the libraries when they are imported. What the user has set stays."""


def quiet_libraries(*, debug: bool) -> None:
    """Keep third-party bars, advice and warnings out of the stage's own progress; `debug` leaves them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this set
    if debug:
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def available_cores() -> int:
    """Cores this process may use, which in a job or container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of a torchrun launch; alone without one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """From RANK, LOCAL_RANK and WORLD_SIZE. Raises `ConfigError` for one that is not a number."""
        return cls(rank=_integer("RANK", 0), local_rank=_integer("LOCAL_RANK", 0), world_size=_integer("WORLD_SIZE", 1))


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value!r}; expected a number, as torchrun sets it")
    return int(value)
