"""A writer in a process of its own, to be killed: `python -m tests.storage.writer_process FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from storage import CacheDescription, CacheWork
from tests.storage.build import MASKED, add_files, make_description, publish


def description() -> CacheDescription:
    return make_description(MASKED, shards=8)


def main(folder: Path) -> None:
    with CacheWork.open(folder / "work", description()) as work:
        print("locked", flush=True)  # noqa: T201 - the test waits for this line
        add_files(work, folder)
        for shard in work.missing():
            publish(work, shard)
        work.finish(folder / "current")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
