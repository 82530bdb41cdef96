"""A training in a process of its own, for tests that end it: `python -m tests.stages.training.train_process PROJECT [ROOT]`."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from stages import train_student
from stages.config import load_config
from stages.context import Artefacts, Context


def main(project: str, root: str | None = None) -> None:
    """Train with the parameters in the project folder, from the cache there or at the root."""
    folder = Path(project)
    config = load_config(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))
    train_student.run(config, Context(artefacts=Artefacts(project=folder, root=root)))


if __name__ == "__main__":
    main(*sys.argv[1:])
