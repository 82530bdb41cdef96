"""The processes of one launch that train together: what they tell each other beside gradients, and how they end.

All that is exchanged here is a few numbers of the host, by gloo: no GPU is waited for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

import stages.errors
import storage.errors
from stages.context import Context
from stages.errors import ConfigError, LostWorkersError, SaidElsewhere, StageError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""While the first process validates the finished student and publishes, the others wait; one that has died is noticed at once."""
_TO_SAY_IT = timedelta(seconds=60)
_TO_HEAR_IT = timedelta(seconds=3)
_FIRST_ERROR, _HEARD, _OVER = (f"teacher-cache/{key}" for key in ("first-error", "heard", "over"))
_GONE = ("Connection closed", "Connection reset", "Broken pipe", "Connection refused")
"""What torch says of a process that is not there any more; it has no class of its own for that."""


class Processes:
    """This process, which is alone: there is nobody to ask and nothing to wait for."""

    rank = 0
    size = 1

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def add(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        return list(values)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The values of each process, by rank."""
        return [list(values)]

    def of_first(self, find: Callable[[], T]) -> T:
        """What the first process finds; the others do not look."""
        return find()

    def wait(self) -> None:
        """Until all are here."""

    def same(self, error: StageError) -> StageError:
        """The error to raise for one that all processes have: one of them says it."""
        return error


class Launch(Processes):
    """The processes that torchrun started."""

    def __init__(self, context: Context) -> None:
        self.rank, self.size = context.rank, context.world_size
        try:
            store, _, _ = next(rendezvous("env://", self.rank, self.size))
        except ValueError as error:
            raise ConfigError(
                f"this is one of {self.size} processes (WORLD_SIZE), but they cannot find each other ({error}); expected what "
                "torchrun sets: RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
            ) from error
        self._store = store
        backend = "gloo" if context.device == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def any(self, flag: bool) -> bool:
        return self.add(float(flag)) != [0.0]

    def add(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        with _lost():
            dist.all_reduce(tensor, group=self._group)
        added: list[float] = tensor.tolist()
        return added

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        mine = torch.tensor(values, dtype=torch.float64)
        all_ = [torch.empty_like(mine) for _ in range(self.size)]
        with _lost():
            dist.all_gather(all_, mine, group=self._group)
        return [tensor.tolist() for tensor in all_]

    def of_first(self, find: Callable[[], T]) -> T:
        found: list[T | None] = [find() if self.rank == 0 else None]
        with _lost():
            dist.broadcast_object_list(found, src=0, group=self._group)
        (value,) = found
        return value  # type: ignore[return-value]  # None where `find` gave None

    def wait(self) -> None:
        with _lost():
            dist.barrier(group=self._group)

    def same(self, error: StageError) -> StageError:
        return error if self.rank == 0 else SaidElsewhere(type(error))

    def ended_by(self, error: Exception) -> Exception:
        """What to raise for an error: itself in the process that had the first one, else `SaidElsewhere`.

        The connections are closed, so that the others notice at once, and the first waits a moment for them: all leave together.
        """
        with suppress(RuntimeError):  # the process that kept the store may be gone
            rank, kind = self._first_error(error)
            dist.destroy_process_group(self._group)
            if rank != self.rank:
                self._store.add(f"{_HEARD}/{self.rank}", 1)
                if self.rank == 0:  # without torchrun it is this process that keeps the store
                    self._store.wait([_OVER], _TO_HEAR_IT)
                return SaidElsewhere(kind)
            if not isinstance(error, LostWorkersError):  # then one of them hears nothing any more
                others = [f"{_HEARD}/{other}" for other in range(self.size) if other != self.rank]
                self._store.wait(others, _TO_HEAR_IT)
            self._store.set(_OVER, "")
        return error

    def _first_error(self, error: Exception) -> tuple[int, type[Exception]]:
        """Which process had the first error, and of what kind."""
        if isinstance(error, SaidElsewhere):
            self._store.wait([_FIRST_ERROR], _TO_SAY_IT)
            first = self._store.get(_FIRST_ERROR)
        else:
            mine = json.dumps([self.rank, type(error).__name__])
            first = self._store.compare_set(_FIRST_ERROR, "", mine)
        rank, name = json.loads(first)
        kind: type[Exception] = getattr(stages.errors, name, None) or getattr(storage.errors, name, None) or StageError
        return rank, kind


@contextmanager
def joined(context: Context) -> Iterator[Processes]:
    """The processes of the launch that this one belongs to.

    An error in one ends all of them; the first to have one raises it, the others `SaidElsewhere`.
    """
    if context.world_size == 1:
        yield Processes()
        return
    launch = Launch(context)
    try:
        yield launch
    except Exception as error:
        raised = launch.ended_by(_as_lost(error))
        if raised is error:
            raise
        raise raised from error
    else:
        dist.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise _as_lost(error) from error


def _as_lost(error: Exception) -> Exception:
    if not isinstance(error, RuntimeError) or not any(gone in str(error) for gone in _GONE):
        return error
    return LostWorkersError(
        "another process of this training has ended without a word (killed, or no memory left?); run the same command again to resume"
    )
