"""One of several processes that share a validation: `... PROJECT RANK WORLD_SIZE RENDEZVOUS BATCHES`, printing the figures as JSON.

It is asked to stop after so many batches; -1: never.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml

from stages.config import load_config
from stages.context import Artefacts, Context
from stages.models import load_masked_lm
from stages.training.validation import Validation
from storage import CacheReader


def main(project: str, rank: str, world_size: str, rendezvous: str, batches: str) -> None:
    """Validate the student's initial weights."""
    folder, left = Path(project), int(batches)

    def should_stop() -> bool:
        nonlocal left
        left -= 1
        return left == -1

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size)
    )
    config = load_config(yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")))
    artefacts = Artefacts(project=folder)
    context = Context(artefacts=artefacts, rank=int(rank), world_size=int(world_size), should_stop=should_stop)
    validation = Validation(config.train, CacheReader(artefacts.cache), context)
    figures = validation.figures(load_masked_lm(artefacts.student_init(config.train.student)))
    sys.stdout.write(json.dumps(figures))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
