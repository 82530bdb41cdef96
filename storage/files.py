"""Durable files: what is on disk after a power cut is either the old state or the new one, never half of each.

Rubbish that a killed process leaves has a name that starts with `.tmp-`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import WriteError

TEMPORARY = ".tmp-"
BLOCK_BYTES = 1 << 22
"""What is read of a file between two looks at whether to go on: some milliseconds."""

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room there"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make that folder writable"),
}


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file and folder below `folder`, and `folder` itself, durable."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(parent))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside `path`, make it durable, then give it its name."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def copy_tree(source: Path, target: Path) -> None:
    """Copy the content of a folder, without its permissions (a DVC checkout may be read-only), durably."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    sync_tree(target)


def link_tree(source: Path, target: Path) -> bool:
    """Give every file of a folder a second name below `target`, in place of what is there; False where that cannot be done.

    Between file systems it cannot, and on those without hard links. It takes no room until the first names are removed.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    discard(temporary)
    discard(target)
    try:
        shutil.copytree(source, temporary, copy_function=os.link)
    except OSError:
        discard(temporary)
        return False
    temporary.rename(target)
    sync_folder(target.parent)
    return True


def has_other_names(folder: Path) -> bool:
    """Whether a file of `folder` is a hard link: it has a name elsewhere too."""
    return any(path.is_file() and path.stat().st_nlink > 1 for path in folder.rglob("*"))


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder or a file, durably; `target` must not exist. Copies where the two are on different file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = target.with_name(f"{TEMPORARY}{target.name}")
        discard(temporary)
        if source.is_dir():
            copy_tree(source, temporary)
        else:
            write_durably(temporary, source.read_bytes())
        temporary.rename(target)
        sync_folder(target.parent)
        discard(source)
    else:
        sync_folder(target.parent)
    sync_folder(source.parent)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there. A folder gets a temporary name first: half of it must not look whole."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        rubbish = path.with_name(f"{TEMPORARY}discarded-{path.name.removeprefix(TEMPORARY)}")
        if rubbish != path:
            shutil.rmtree(rubbish, ignore_errors=True)
            path.rename(rubbish)
        shutil.rmtree(rubbish)


def remove_temporaries(folder: Path, name: str = "") -> None:
    """Remove what a killed process left directly in `folder` (names that start with `.tmp-` and `name`)."""
    if folder.is_dir():
        for path in list(folder.iterdir()):
            if path.name.startswith(f"{TEMPORARY}{name}"):
                discard(path)  # by another name first: its writer may not be dead after all


def sha256_file(path: Path, read: Callable[[int], None] | None = None) -> str:
    """SHA-256 (hex) of a file's bytes. `read` is told the bytes of each block; what it raises ends it."""
    with path.open("rb") as file:
        if read is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            read(len(block))
    return digest.hexdigest()


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a `WriteError` that names the file, the folder and what to do."""
    try:
        yield
    except OSError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise WriteError(
            f"{what} could not be written to {folder}{file}: {error.strerror or error}; "
            f"{_REMEDIES.get(error.errno or 0, 'see to that')}, then run the same command again: every finished shard is kept"
        ) from error
