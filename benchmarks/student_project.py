"""What benchmarks of students have in common: where real text is, a project in a folder, and small values for `--quick`."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from pipeline.environment import quiet_libraries
from stages.context import Artefacts, Context
from stages.device import resolve_device

ROOT = Path(__file__).parents[1]
QUICK = [
    "corpus.docstrings.packages=[click, rich]",
    "corpus.validation_fraction=0.1",
    "corpus.test_fraction=0.1",
    "tokenize.train.vocabulary_size=800",
    "teacher.train.steps=4",
    "cache.sequences={train: 64, validation: 8, test: 8}",
    "train.steps=2",
    "train.warmup_steps=1",
]
"""Values of the embedded default that only show that a benchmark runs."""


def real_text(*path: str) -> Path:
    """A file or folder of `$TEACHER_CACHE_DATA`, else of `../shared/data`, whether it is there or not."""
    return Path(os.environ.get("TEACHER_CACHE_DATA", ROOT.parent / "shared" / "data")).joinpath(*path)


def context_in(project: Path) -> Context:
    """A project folder, on the best device that there is."""
    return Context(artefacts=Artefacts(project=project), device=resolve_device("auto"), threads=torch.get_num_threads())


def quiet() -> None:
    """Libraries say nothing, so that tables are all that a benchmark prints."""
    quiet_libraries(debug=False)
    transformers_logging.disable_progress_bar()
