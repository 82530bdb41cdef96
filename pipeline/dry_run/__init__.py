"""`--dry-run`: what is there, and what a command would do. Reads descriptions and writes nothing.

What makes a file stale beyond the parameters (other content of an input) is DVC's to say: `dvc status`. Here nothing is read that
grows with the data, but for weights whose digest is part of an identity: of initial weights, and of a model that is fine-tuned.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

_MODULES = {
    "cache-teacher": "cache",
    "train-student": "training",
    "finetune": "finetuning",
    "compare": "comparison",
}
"""Where the preview of a command is; of the others in `stages`."""


def preview_of(command: str) -> Callable[..., None]:
    """What says it for `command`: takes parameters, context and the command's own arguments."""
    module = import_module(f"{__name__}.{_MODULES.get(command, 'stages')}")
    preview: Callable[..., None] = getattr(module, command.replace("-", "_"))
    return preview
