"""The embedded default: the English prose in the source files of installed packages. One document per file."""

from __future__ import annotations

import gc
import importlib.metadata
import multiprocessing
import os
import signal
import threading
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
    context.progress.begin("read docstrings", len(files), "files")
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
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin_worker) as pool:
        try:
            # The workers start here, and inherit the mask: a Ctrl-C before their initializer has run is held back too.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                parsed = pool.map(file_paragraphs, paths, chunksize=_CHUNK)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield from parsed
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    # A terminal sends Ctrl-C to all processes of a command; what becomes of the pool is the parent's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A worker is deaf to the signal that ended its parent at once, and would wait for tasks for ever.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Parsing is faster without the collector of cycles, of which syntax trees have none.
    gc.disable()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
