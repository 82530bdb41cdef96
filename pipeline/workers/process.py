"""What happens in a worker process: the job is begun once, its items are done in the threads that Dask has."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import BoundedSemaphore, Lock
from typing import Any

from pipeline.environment import available_cores, quiet_libraries
from stages.errors import Interrupted
from stages.sharing import Job, Place


@dataclass(frozen=True)
class Machine:
    """What a worker process is to compute with; on which of its GPUs and with how many threads it finds out itself."""

    device: str
    """As `machine.device`."""
    threads: int | None
    """None: all cores that it may use."""
    tensors: bool
    """Whether the stage computes with torch at all."""
    debug: bool

    def set_up(self, should_stop: Callable[[], bool]) -> Place:
        """Settle this process; what its job computes with."""
        quiet_libraries(debug=self.debug)
        device, threads = "cpu", self.threads or available_cores()
        if self.tensors:
            from stages import device as tensor_device

            device = tensor_device.resolve_device(self.device)
            threads = tensor_device.set_up(device, threads)
        return Place(device=device, threads=threads, should_stop=should_stop)


@dataclass
class _Begun:
    """A job of this process."""

    stack: ExitStack
    do: Callable[[Any], Any]
    free: BoundedSemaphore


@dataclass
class _Process:
    """What this process has begun and been told, by the token of each run of a job."""

    beginning: Lock = field(default_factory=Lock)
    begun: dict[str, _Begun] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    in_hand: dict[str, int] = field(default_factory=dict)


_PROCESS = _Process()


def work(token: str, job: bytes, machine: Machine, item: Any) -> Any:
    """Do one item of the pickled job, which is begun here if it is not yet; what came of it."""
    with _PROCESS.beginning:
        _PROCESS.in_hand[token] = _PROCESS.in_hand.get(token, 0) + 1
    try:
        if token in _PROCESS.dropped:
            raise Interrupted("the item was dropped before it was begun")
        begun = _begin(token, job, machine)
        with begun.free:  # a worker may have more threads than the job has items in hand
            return begun.do(item)
    finally:
        with _PROCESS.beginning:
            _PROCESS.in_hand[token] -= 1
        if token in _PROCESS.dropped:
            end(token)


def _begin(token: str, job: bytes, machine: Machine) -> _Begun:
    with _PROCESS.beginning:
        if token not in _PROCESS.begun:
            # Left behind by a coordinator that was killed; its teacher would stay in memory.
            for other in [other for other in _PROCESS.begun if not _PROCESS.in_hand.get(other)]:
                _PROCESS.begun.pop(other).stack.close()
            place = machine.set_up(lambda: token in _PROCESS.dropped)  # before the job's libraries are imported
            what: Job[Any, Any] = pickle.loads(job)  # noqa: S301  from our own coordinator, as the task itself
            with ExitStack() as stack:
                do = stack.enter_context(what.begin(place))
                _PROCESS.begun[token] = _Begun(stack.pop_all(), do, BoundedSemaphore(what.at_once))
        return _PROCESS.begun[token]


def drop(token: str) -> None:
    """Have the items in hand given up as soon as they ask, and begin no more."""
    _PROCESS.dropped.add(token)


def end(token: str) -> bool:
    """Let go of what the job has loaded, unless items are in hand; whether that is done.

    It does not wait for them, as it is called where the worker answers its scheduler: the last of those that are dropped does it.
    """
    if _PROCESS.in_hand.get(token):
        return False
    begun = _PROCESS.begun.pop(token, None)
    if begun is not None:
        begun.stack.close()
    _PROCESS.in_hand.pop(token, None)
    return True
