"""A push or pull in a process of its own, to be killed: `python -m tests.storage.transfer_process push|pull URL FOLDER`.

FOLDER holds `current` and `work`; what is pulled is the only cache at the root.
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.remote import RemoteFolder, finished_caches, pull, push


def main(what: str, url: str, folder: Path) -> None:
    root = RemoteFolder(url)
    if what == "push":
        push(folder / "current", root, folder / "work", workers=1)
    else:
        (fingerprint,) = finished_caches(root)
        pull(root, fingerprint, folder / "current", folder / "work", workers=1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
