"""One of several processes that share a validation: `... PROJECT`, with what torchrun sets in the environment.

It prints the figures as JSON, and those of a second validation, in which the last process is asked to stop after a batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

from pipeline.environment import Ranks
from stages.config import load_config
from stages.context import Artefacts, Context
from stages.models import load_masked_lm
from stages.sharing import never
from stages.training.processes import joined
from stages.training.validation import Validation
from storage import CacheReader
from tests.stages.runners import AfterCalls


def main(project: str) -> None:
    """Validate the student's initial weights, twice."""
    folder, ranks = Path(project), Ranks.from_environment()
    config = load_config(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))
    artefacts = Artefacts(project=folder)
    student = load_masked_lm(artefacts.student_init(config.train.student))
    context = Context(artefacts=artefacts, rank=ranks.rank, world_size=ranks.world_size)
    with joined(context) as processes:

        def figures(should_stop: Callable[[], bool]) -> dict[str, float]:
            asked = replace(context, should_stop=should_stop)
            return Validation(config.train, CacheReader(artefacts.cache), asked, processes).figures(student)

        last = ranks.rank == ranks.world_size - 1
        sys.stdout.write(json.dumps([figures(never), figures(AfterCalls(1) if last else never)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
