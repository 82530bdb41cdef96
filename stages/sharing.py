"""Work that is shared out: a job says what is to be done with an item, a runner in which processes that happens.

A stage hands its items to `Context.runner` and is told of each as it is done. Without workers that is `InProcess`; the
command line may put processes of this machine or of a cluster in its place, which the stage does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import islice
from threading import Event
from typing import Generic, Protocol, TypeVar

from stages.errors import ItemsError, KillsWorkersError

Item = TypeVar("Item")
Result = TypeVar("Result")
Taken_contra = TypeVar("Taken_contra", contravariant=True)
Given_co = TypeVar("Given_co", covariant=True)


MOST_FAILURES = 16
"""So many items that fail are not the items' fault: nothing more is begun."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a process of a job computes with."""

    device: str = "cpu"
    """A torch device: `cpu`, `cuda`, `cuda:1`."""
    threads: int = 1
    should_stop: Callable[[], bool] = never
    """Whether the item in hand is to be dropped: asked now and then while it is worked on, in which case the work raises
    `Interrupted`."""


class Job(Protocol[Taken_contra, Given_co]):
    """What any process can do with items, one at a time, given its fields: it travels to other processes by pickle."""

    @property
    def at_once(self) -> int:
        """Items that a process has in hand at the same time, in a thread each, so that one is written while the next is computed."""

    def begin(self, place: Place) -> AbstractContextManager[Callable[[Taken_contra], Given_co]]:
        """Once per process: load what all items need. What its context gives is called in `at_once` threads."""


@dataclass(frozen=True)
class Done(Generic[Item, Result]):
    """An item and what came of it."""

    item: Item
    result: Result


@dataclass(frozen=True)
class Failed(Generic[Item]):
    """An item that could not be done, and why. The others go on; whether that makes sense is for the stage to say."""

    item: Item
    error: Exception


Outcome = Done[Item, Result] | Failed[Item]


class Runner(Protocol):
    """Has a job done with each item."""

    def run(self, job: Job[Item, Result], items: Iterable[Item], place: Place) -> Generator[Outcome[Item, Result]]:
        """The outcome of each item, in the order in which they are done; `place` is what this process would compute with.

        Items are started in their order, few at a time. Closed before its end, the generator starts no more of them, and
        waits for those in hand, whose `Place.should_stop` may tell them to give up.
        """


class InProcess:
    """The runner without workers: this process does it."""

    def run(self, job: Job[Item, Result], items: Iterable[Item], place: Place) -> Generator[Outcome[Item, Result]]:
        """As `Runner.run`."""
        waiting = iter(items)
        given_up = Event()
        asked = place.should_stop
        place = replace(place, should_stop=lambda: given_up.is_set() or asked())
        with job.begin(place) as do, ThreadPoolExecutor(job.at_once, thread_name_prefix="item") as pool:
            in_hand: dict[Future[Result], Item] = {}
            try:
                while True:
                    for item in islice(waiting, job.at_once - len(in_hand)):
                        in_hand[pool.submit(do, item)] = item
                    if not in_hand:
                        return
                    for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                        item, error = in_hand.pop(future), future.exception()
                        if error is not None and not isinstance(error, Exception):
                            raise error
                        yield Done(item, future.result()) if error is None else Failed(item, error)
            finally:
                given_up.set()
                for future in in_hand:
                    future.cancel()


@dataclass
class Failures:
    """Items that could not be done while the others can: each is told at once, all are raised in the end."""

    report: Callable[[str], None]
    error: Exception | None = None
    """Of the first."""
    number: int = 0

    def add(self, failed: Failed[Item], bearable: tuple[type[Exception], ...]) -> None:
        """Keep the failure of one item in mind.

        Raises its error at once where that is none of `bearable` (a full disk concerns all items), and `ItemsError` where
        so many failed that it cannot be the items.
        """
        if not isinstance(failed.error, (*bearable, KillsWorkersError)):
            raise failed.error
        self.report(f"{failed.item} failed, the others go on: {failed.error}")
        self.number += 1
        self.error = self.error or failed.error
        if self.number == MOST_FAILURES:
            self.finish("what was done before is kept")

    def finish(self, kept: str) -> None:
        """Raise `ItemsError` where anything failed, with the first error and what is `kept`."""
        if self.error is not None:
            more = f" (and {self.number - 1} more failed, each named above)" if self.number > 1 else ""
            raise ItemsError(f"{self.error}{more}; {kept}; the same command does only what is missing") from self.error
