"""One of several processes that share a validation: `... PROJECT RANK WORLD_SIZE RENDEZVOUS`.

It prints the figures as JSON, and those of a second validation, in which the last process is asked to stop after a batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from stages.config import load_config
from stages.context import Artefacts, Context
from stages.models import load_masked_lm
from stages.sharing import never
from stages.training.validation import Validation
from storage import CacheReader
from tests.stages.runners import AfterCalls


def main(project: str, rank_text: str, world_size_text: str, rendezvous: str) -> None:
    """Validate the student's initial weights, twice."""
    folder, rank, world_size = Path(project), int(rank_text), int(world_size_text)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    config = load_config(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))
    artefacts = Artefacts(project=folder)
    student = load_masked_lm(artefacts.student_init(config.train.student))

    def figures(should_stop: Callable[[], bool]) -> dict[str, float]:
        context = Context(artefacts=artefacts, rank=rank, world_size=world_size, should_stop=should_stop)
        return Validation(config.train, CacheReader(artefacts.cache), context).figures(student)

    last = rank == world_size - 1
    sys.stdout.write(json.dumps([figures(never), figures(AfterCalls(1) if last else never)]))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
