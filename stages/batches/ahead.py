"""Items that a thread makes before they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _End:
    """Comes after the last item."""

    error: BaseException | None


@contextmanager
def made_ahead(items: Iterable[T], count: int, interrupt: Callable[[], None]) -> Iterator[Iterator[T]]:
    """The same items in the same order, made by a thread: up to `count` lie ready while the next one is in the making.

    What making an item raises is raised where it would have come. Leaving the context calls `interrupt`, which has to end whatever
    the making waits for, and joins the thread.
    """
    ready: Queue[T | _End] = Queue(count)
    left = Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                ready.put(item)
                if left.is_set():
                    return
        except BaseException as raised:  # noqa: BLE001  it is raised again in the other thread
            error = raised
        ready.put(_End(error))

    # A daemon: where nobody leaves the context, the end of the program does not wait for it.
    thread = Thread(target=make, name="batches ahead", daemon=True)
    thread.start()
    try:
        yield _taken(ready)
    finally:
        left.set()
        interrupt()
        _empty(ready)  # what is in the making has room then, and is the last
        thread.join()


def _taken(ready: Queue[T | _End]) -> Iterator[T]:
    while not isinstance(item := ready.get(), _End):
        yield item
    if item.error is not None:
        raise item.error


def _empty(ready: Queue[T | _End]) -> None:
    try:
        while True:
            ready.get_nowait()
    except Empty:
        return
