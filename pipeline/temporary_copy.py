"""`dvc exp run --temp` and `--queue` run the stages in a copy of the project, which DVC removes afterwards, whatever came of it.

The copy is `.dvc/tmp/exps/tmp...` or `.dvc/tmp/exps/standalone/tmp...` below the folder that DVC was initialised in, and holds
what git and DVC track. What a stopped run is to be resumed from is tracked by neither, so it lies in the project itself.
"""

from __future__ import annotations

from pathlib import Path

_COPIES = Path(".dvc", "tmp", "exps")


def original_of(project: Path) -> Path | None:
    """The project that the folder `project` is such a copy of; None where it is none."""
    folder = project.resolve()
    copy = next((parent for parent in (folder, *folder.parents) if (parent / ".dvc").is_dir()), folder)
    for parent in copy.parents:
        if copy.is_relative_to(parent / _COPIES):
            return parent / folder.relative_to(copy)
    return None
