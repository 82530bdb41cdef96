"""What the process is told by its surroundings (torchrun's ranks, cores, git), and what it tells the libraries."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
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

WRITTEN_BY_STAGES = ("dvc.lock", "runs", "cache")
"""Paths of the project folder that git tracks and the stages write: during `dvc repro` they always differ."""


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


def visible_gpus(device: str) -> list[str]:
    """The GPUs that worker processes share, named as in CUDA_VISIBLE_DEVICES; `device` is `machine.device`."""
    from stages.device import gpu_count

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(number) for number in range(gpu_count())]
    kind, _, index = device.partition(":")
    return [names[int(index)]] if kind == "cuda" and index else names


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, ` (modified)` added where files tracked in its repository differ from it.

    None outside of git, before the first commit and where git is not installed. `WRITTEN_BY_STAGES` may differ.
    """
    excluded = [f":(exclude){path}" for path in WRITTEN_BY_STAGES]
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", *excluded)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} (modified)" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    # Without the optional locks, a status does not get in the way of a git command of the user's.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those of a torchrun launch; alone without one."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_size: int = 1
    """Processes on this node; 1 where the launcher does not say (srun): then each keeps to itself."""
    launch: str = ""
    """What the processes of one launch have in common, and no other launch on this machine."""

    @classmethod
    def from_environment(cls) -> Self:
        """From torchrun's RANK, LOCAL_RANK and so on. Raises `ConfigError` for one that is not a number."""
        return cls(
            rank=_integer("RANK", 0),
            local_rank=_integer("LOCAL_RANK", 0),
            world_size=_integer("WORLD_SIZE", 1),
            local_size=_integer("LOCAL_WORLD_SIZE", 1),
            launch="/".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")),
        )


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise ConfigError(f"the environment variable {name} is {value!r}; expected a number, as torchrun sets it")
    return int(value)
