"""The embedded default: the English prose in the source files of installed packages. One document per file."""

from __future__ import annotations

import gc
import importlib.metadata
import multiprocessing
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from stages.config import DocstringsConfig
from stages.context import Context
from stages.documents.document import Document
from stages.documents.novelty import Novelty
from stages.documents.python_source import file_paragraphs
from stages.errors import InputError

_LEFT_OUT = {"..", "test", "tests", "testing", "_vendor"}
"""Folders: what lies outside site-packages, what says little in prose, and copies of other packages."""
_CHUNK = 32
"""Files per task: enough to hide the cost of handing it over."""


def docstring_documents(config: DocstringsConfig, context: Context) -> Generator[Document]:
    """One document per source file of the packages that holds new prose, in the order of their paths.

    A document's id is its path below site-packages; its text is paragraphs with a blank line between them. Of a
    paragraph that occurs more than once, the first is kept (`DocstringsConfig.max_seen_share`). Files are parsed in
    `context.threads` processes; the result does not depend on their number. Raises `InputError` for a package that is
    not installed.
    """
    files = _source_files(config.packages)
    context.progress.begin("read docstrings", len(files), "file")
    novelty = Novelty(config.max_seen_share)
    for name, found in zip(files, _parsed(list(files.values()), context.threads), strict=True):
        new = [paragraph for paragraph in found if novelty.is_new(paragraph)]
        if new:
            yield Document(name, "\n\n".join(new))
        context.progress.advance()


def _parsed(paths: list[Path], processes: int) -> Iterator[list[str]]:
    if processes == 1 or len(paths) <= _CHUNK:
        yield from map(file_paragraphs, paths)
        return
    # Spawned, not forked: the parent may hold threads (a tokenizer's, torch's), and a fork copies their locks.
    # Without the collector of cycles, of which syntax trees have none, parsing is faster.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=gc.disable) as pool:
        try:
            yield from pool.map(file_paragraphs, paths, chunksize=_CHUNK)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _source_files(packages: tuple[str, ...]) -> dict[str, Path]:
    """Path below site-packages -> file, sorted, of the `*.py` files of the packages, without tests and vendored copies."""
    files: dict[str, Path] = {}
    for package in packages:
        try:
            installed = importlib.metadata.files(package)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(
                f"corpus.docstrings.packages names {package}, which is not installed; run `pip install {package}` "
                "in the version of the lock file, or take it off the list"
            ) from None
        for file in installed or ():
            if file.suffix == ".py" and not _LEFT_OUT.intersection(file.parts):
                files[file.as_posix()] = Path(str(file.locate()))
    return dict(sorted(files.items()))
