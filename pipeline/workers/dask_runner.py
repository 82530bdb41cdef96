"""A runner whose items are tasks of a Dask cluster.

Items are fed a few per worker at a time, so that none waits behind a worker that is lost. A task may run twice, so jobs look
whether an item is done already. An item that its worker dies of is done elsewhere; one that it keeps dying of is tried alone in
the end, as its neighbours may have been to blame, and then given up.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Generic, Protocol, Self
from uuid import uuid4

from dask.typing import Key
from distributed import Client, Future, KilledWorker

from pipeline.workers import process
from pipeline.workers.process import Machine
from stages.errors import Interrupted, KillsWorkersError, LostWorkersError
from stages.sharing import Done, Failed, Item, Job, Outcome, Place, Result

TICK_SECONDS = 0.1
"""How soon a request to stop is seen."""
LOOK_SECONDS = 1.0
"""How soon new workers are seen."""


class Workers(Protocol):
    """Where the workers are."""

    patience_seconds: float | None
    """How long there may be no worker at all; None: for ever."""
    drop_seconds: float
    """How long items that were dropped are waited for. Those that go on are left to themselves, or end with their process."""

    @property
    def hint(self) -> str:
        """Where to look when something went wrong."""

    def connected(self, at_once: int) -> AbstractContextManager[Client]:
        """A client of them; those that are started for it do `at_once` items at the same time, and end with it at once."""

    def check(self, client: Client, addresses: Sequence[str]) -> None:
        """Raise `LostWorkersError` where one of these workers cannot do the work."""


class DaskRunner:
    """A `Runner` with processes of their own. They are started, or connected to, for the first job."""

    def __init__(self, workers: Workers, machine: Machine) -> None:
        self._workers, self._machine = workers, machine
        self._stack = ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disconnect()

    def _disconnect(self) -> None:
        self._client = None
        self._stack.close()

    def run(self, job: Job[Item, Result], items: Iterable[Item], place: Place) -> Generator[Outcome[Item, Result]]:
        """As `Runner.run`; of `place` only `should_stop` counts.

        Raises `LostWorkersError` where the workers cannot do the work, or the scheduler is gone.
        """
        items = iter(items)
        first = list(islice(items, 1))
        if not first:
            return
        if self._client is None:
            self._client = self._stack.enter_context(self._workers.connected(job.at_once))
        hand: _Hand[Item, Result] = _Hand(self._client, self._workers, self._machine, pickle.dumps(job), job.at_once)
        try:
            yield from hand.outcomes(chain(first, items), place)
        finally:
            if not hand.let_go():
                self._disconnect()


def _work() -> Callable[[bytes], Any]:
    # A function within a function travels as code, and its argument as bytes: a worker that cannot import this project, which
    # may join at any time, then fails in the task and can be told what it lacks. It would lose its connection otherwise.
    def work(arguments: bytes) -> Any:
        import pickle

        from pipeline.workers import process

        return process.work(*pickle.loads(arguments))  # noqa: S301  from our own coordinator, as this function

    return work


@dataclass
class _Hand(Generic[Item, Result]):
    """The items of one run that are under way."""

    client: Client
    workers: Workers
    machine: Machine
    job: bytes
    at_once: int
    work: Callable[[bytes], Result] = field(default_factory=_work)
    token: str = field(default_factory=lambda: uuid4().hex)
    under_way: dict[Key, tuple[Future[Result], Item]] = field(default_factory=dict)
    arrived: SimpleQueue[Future[Result]] = field(default_factory=SimpleQueue)
    submitted: int = 0
    known: set[str] = field(default_factory=set)
    """Addresses of the workers that are there, and were looked at."""
    looked: float = float("-inf")
    worked: float = field(default_factory=time.monotonic)
    """When there last was a worker."""

    def outcomes(self, items: Iterable[Item], place: Place) -> Iterator[Outcome[Item, Result]]:
        """As `Runner.run`."""
        waiting = iter(items)
        suspects: list[Item] = []
        alone = False
        while True:
            self._look()
            for item in islice(waiting, max(0, self._room() - len(self.under_way))):
                self._submit(item)
            if not self.under_way:
                if not suspects:
                    return
                alone = True
                self._submit(suspects.pop())
            if place.should_stop():
                _, item = next(iter(self.under_way.values()))
                yield Failed(item, Interrupted("stopped as asked"))
                return
            try:
                future = self.arrived.get(timeout=TICK_SECONDS)
            except Empty:
                continue
            _, item = self.under_way.pop(future.key)
            outcome = self._outcome(future, item)
            if isinstance(outcome, Failed) and isinstance(outcome.error, KilledWorker):
                if not alone:
                    suspects.append(item)
                    continue
                outcome = Failed(item, self._kills(item))
            yield outcome

    def let_go(self) -> bool:
        """Have what is still in hand dropped and the job forgotten; whether all workers did so in time."""
        if self.client.status != "running":
            return False
        end = time.monotonic() + self.workers.drop_seconds
        with suppress(OSError, TimeoutError):
            self._tell(process.drop, end)  # also what a worker that was given up for lost may still have
            if self.under_way:
                self.client.cancel([future for future, _ in self.under_way.values()], force=True)
                self.under_way.clear()
            while not all(self._tell(process.end, end).values()):
                if time.monotonic() > end:
                    return False
                time.sleep(TICK_SECONDS)
            return True
        return False

    def _tell(self, what: Callable[[str], Any], end: float) -> dict[str, Any]:
        """What each worker answers. Raises `TimeoutError` where one does not before `end`: it may hang in a kernel."""
        left = max(TICK_SECONDS, end - time.monotonic())
        return self.client.run(what, self.token, on_error="ignore", callback_timeout=left)  # type: ignore[no-any-return]

    def _room(self) -> int:
        """Items that may be under way: one more per worker than it does at once. Some too while there is none: they call one."""
        return max(1, len(self.known)) * (self.at_once + 1)

    def _submit(self, item: Item) -> None:
        self.submitted += 1
        future = self.client.submit(
            self.work,
            pickle.dumps((self.token, self.job, self.machine, item)),
            key=f"{self.token}-{self.submitted}",
            pure=False,
        )
        self.under_way[future.key] = future, item
        future.add_done_callback(self.arrived.put)

    def _look(self) -> None:
        """See which workers there are, now and then, and check the new ones."""
        if self.client.status != "running":
            raise self._lost()
        now = time.monotonic()
        if now < self.looked + LOOK_SECONDS:
            return
        try:
            found = set(self.client.nthreads())
            new = sorted(found - self.known)
            if new:
                self.workers.check(self.client, new)
        except (OSError, TimeoutError) as error:
            raise self._lost() from error
        self.looked, self.known = now, found
        if found:
            self.worked = now
        elif self.workers.patience_seconds is not None and now > self.worked + self.workers.patience_seconds:
            raise LostWorkersError(
                f"no worker process has been there for {self.workers.patience_seconds:.0f} s; {self.workers.hint}"
            )

    def _outcome(self, future: Future[Result], item: Item) -> Outcome[Item, Result]:
        if future.status == "finished":
            return Done(item, future.result())
        if future.status == "error":
            error = future.exception()
            if isinstance(error, ImportError):  # of a worker that came only now, say
                self.looked, self.known = float("-inf"), set()
                self._look()
            if not isinstance(error, Exception):
                raise LostWorkersError(f"{item}: a worker was ended by {error!r}; {self.workers.hint}")
            return Failed(item, error)
        raise self._lost()

    def _kills(self, item: Item) -> KillsWorkersError:
        return KillsWorkersError(
            f"{item}: every worker process that worked on it died, also when it was the only one (no memory left, or a crash); "
            f"{self.workers.hint}"
        )

    def _lost(self) -> LostWorkersError:
        return LostWorkersError(
            f"the Dask scheduler was lost; what was done is kept, and the same command goes on from there; {self.workers.hint}"
        )
