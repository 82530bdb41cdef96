"""Processes that do a stage's work, on this machine or in a Dask cluster. Dask is imported where it is asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ConfigError
from stages.sharing import InProcess, Runner

if TYPE_CHECKING:
    from stages.config import Config
    from stages.context import Progress


def open_runner(
    config: Config,
    *,
    workers: int | None,
    scheduler: str | None,
    project: Path,
    device: str,
    tensors: bool,
    debug: bool,
    progress: Progress,
) -> AbstractContextManager[Runner]:
    """What a stage hands its items to: `workers` processes here, those of the Dask `scheduler`, or neither: this process.

    `device` is what this process would compute on. Processes are started when the first job comes, and are gone when the
    context ends.
    """
    if workers is None and scheduler is None:
        return nullcontext(InProcess())
    if tensors and config.machine.device_map is not None and workers != 1:
        raise ConfigError(
            f"machine.device_map is {config.machine.device_map}: one teacher takes all devices of a process; allowed with other "
            "processes: null (or cache-teacher --shards I/N, a process on each machine)"
        )
    from pipeline.environment import available_cores, visible_gpus
    from pipeline.workers.dask_runner import DaskRunner
    from pipeline.workers.process import Machine

    project = project.absolute()
    if scheduler is not None:
        from pipeline.workers.cluster import Cluster

        machine = Machine(config.machine.device, config.machine.threads, tensors=tensors, debug=debug)
        return DaskRunner(Cluster(scheduler, project, progress), machine)
    from pipeline.workers.local import LocalWorkers

    assert workers is not None
    threads = config.machine.threads or max(1, available_cores() // workers)
    gpus = visible_gpus(config.machine.device) if device != "cpu" else []
    machine = Machine("cuda" if gpus else "cpu", threads, tensors=tensors, debug=debug)
    return DaskRunner(LocalWorkers(workers, threads, gpus, project / ".cache-work" / "workers.log"), machine)
