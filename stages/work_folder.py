"""Work that is kept until all of it is done: parts in a folder below `.cache-work`, each whole or not there.

A process may be killed at any moment: the next start finds the folder by its name, which says what determines the parts,
takes those that are as they were written, and has the others done.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from stages.context import Context
from stages.outputs import write_json
from stages.sharing import Failed, Item, Job, Result
from storage.files import TEMPORARY, discard, move_folder, remove_temporaries, sha256_file, sync_tree
from storage.identity import fingerprint
from storage.locking import lock, publishing

_FIGURES = "part.json"
_TURN = "parts"


@contextmanager
def work_folder(
    stage: str, what: str, spec: Mapping[str, Any], content: Mapping[str, Any], context: Context
) -> Iterator[Path]:
    """The folder of the parts that `spec` (parameters) and `content` (digests of input) determine, held by a lock.

    Removed when the block ends, kept after an error. Raises `LockedError` where another process holds it; `what` says
    what they both would make.
    """
    root = context.artefacts.cache_work.absolute()  # workers may be started elsewhere
    folder = root / f"{stage}-{fingerprint(spec, content)}"
    root.mkdir(parents=True, exist_ok=True)
    with lock(root, folder.name, what):
        folder.mkdir(exist_ok=True)
        remove_temporaries(folder)  # of processes that were killed
        yield folder
        with publishing(folder, _TURN):
            discard(folder)


@contextmanager
def whole_part(folder: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """A draft for the files of a part, and a mapping for its figures; both appear in `folder` when the block ends.

    The same part may be written twice at the same time, also by a process that was given up for lost: each has a draft of its
    own, and the second leaves what the first put there. Raises `FileNotFoundError` where the work folder is no longer there.
    """
    figures: dict[str, int] = {}
    draft = folder.with_name(f"{TEMPORARY}{folder.name}-{secrets.token_hex(8)}")
    draft.mkdir()
    try:
        yield draft, figures
        digests = {file.name: sha256_file(file) for file in sorted(draft.iterdir())}
        write_json(draft / _FIGURES, {"figures": figures, "sha256": digests})
        sync_tree(draft)
        with publishing(folder.parent, _TURN):
            if kept_part(folder) is None:
                draft.stat()  # it is gone with the work folder where all was done without this process
                discard(folder)
                move_folder(draft, folder)
    finally:
        discard(draft)


def kept_part(folder: Path) -> dict[str, int] | None:
    """The figures of a part that is there; None where there is none, or where it is no longer what was written."""
    try:
        found = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
        figures: dict[str, int] = found["figures"]
        whole = all(sha256_file(folder / name) == digest for name, digest in found["sha256"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return figures if whole else None


def shared_out(
    job: Job[Item, Result], items: Iterable[Item], context: Context, work: Path
) -> Generator[tuple[Item, Result]]:
    """Items and what came of them, in the order in which `context.runner` has them done.

    Raises the error of the first that fails, and `Interrupted` where a stop is asked for; what is done is kept in `work`.
    """
    kept = f"what is done is kept in {work}"
    with closing(context.runner.run(job, items, context.place)) as outcomes:
        for outcome in outcomes:
            context.stop_if_asked(kept)
            if isinstance(outcome, Failed):
                raise outcome.error
            yield outcome.item, outcome.result
    context.stop_if_asked(kept)
