"""Worker processes on this machine: a Dask scheduler in this process, and a nanny per worker that starts it anew when it dies."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster

from pipeline.workers import preload
from pipeline.workers.logs import logged_to
from stages.errors import LostWorkersError

HOST = "127.0.0.1"
ALLOWED_FAILURES = 1
"""Workers that may die on an item, less one, before it is tried alone."""
_DASK: dict[str, Any] = {
    # Or the nanny sets OMP_NUM_THREADS=1, for this process too.
    "distributed.nanny.pre-spawn-environ": {},
    # What watches tasks of milliseconds takes 3 % of a core in each process, and ours last for seconds and more.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.client.scheduler-info-interval": "1 minute",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

_SET_BY_DASK = ("DASK_LOGGING__DISTRIBUTED", "__DASK_PARENT_PID", "PYTHONHASHSEED")


class LocalWorkers:
    """`workers` processes of so many threads for tensor work; the GPUs, named as in CUDA_VISIBLE_DEVICES, go round among them.

    They are gone when this process is, however it ends: each watches a pipe from it.
    """

    patience_seconds: float | None = 60.0
    """How long there may be no worker at all."""
    drop_seconds = 2.0
    """What has not noticed by then is killed with its process."""

    def __init__(self, workers: int, threads: int, gpus: Sequence[str], log: Path) -> None:
        self._workers, self._threads, self._gpus, self._log = workers, threads, gpus, log

    @property
    def hint(self) -> str:
        """Where to look when something went wrong."""
        return f"see {self._log}"

    @contextmanager
    def connected(self, at_once: int) -> Iterator[Client]:
        """A client of the running workers, each of which does `at_once` items at the same time."""
        with ExitStack() as stack:
            stack.enter_context(logged_to(self._log))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="teacher-cache-workers-"))
            stack.enter_context(_own_environment())
            stack.enter_context(dask.config.set(_DASK))
            try:
                cluster = stack.enter_context(
                    SpecCluster(
                        workers={
                            number: {"cls": Nanny, "options": self._options(number, at_once, scratch)}
                            for number in range(self._workers)
                        },
                        scheduler={
                            "cls": Scheduler,
                            "options": {
                                "host": HOST,
                                "port": 0,
                                "dashboard": False,
                                "dashboard_address": f"{HOST}:0",
                                "allowed_failures": ALLOWED_FAILURES,
                                "worker_ttl": "24 hours",  # an item may hold its process up for longer than Dask waits
                            },
                        },
                    )
                )
                client = stack.enter_context(Client(cluster, set_as_default=False))
            except (RuntimeError, OSError) as error:
                raise LostWorkersError(
                    f"{self._workers} worker processes could not be started ({error}); {self.hint}"
                ) from error
            stack.callback(cluster.sync, _kill, cluster)
            yield client

    def check(self, client: Client, addresses: Sequence[str]) -> None:
        """Nothing: they are processes of this very installation."""

    def _options(self, number: int, at_once: int, scratch: str) -> dict[str, Any]:
        environment = {name: str(self._threads) for name in _THREAD_VARIABLES}
        environment[preload.LOG_FILE] = str(self._log)
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number % len(self._gpus)]
        return {
            "nthreads": at_once,
            "host": HOST,
            "memory_limit": 0,  # what the teacher needs, it needs
            "local_directory": scratch,
            "env": environment,
            "preload": [preload.__name__],
            "dashboard": False,
            "dashboard_address": f"{HOST}:0",
        }


async def _kill(cluster: SpecCluster) -> None:
    """End the processes, whatever they do: what they publish appears whole or not at all. Asked, they would end their items first."""
    for nanny in cluster.workers.values():
        nanny.close_gracefully()  # it starts no other in its place
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Keep what nannies set in this process's environment from staying there, and what workers say before they are set up."""
    before = {name: os.environ.get(name) for name in _SET_BY_DASK}
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")  # and up
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
