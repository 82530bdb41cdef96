"""Runs one stage: parameters, then the place it runs in, then the stage; failures become exit codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pipeline.environment import Ranks, available_cores, git_commit, quiet_libraries
from pipeline.failures import reported
from pipeline.logged import LogFile
from pipeline.params import read_config
from pipeline.progress import Reporter, make_reporter
from pipeline.stop import StopRequest
from pipeline.temporary_copy import original_of
from pipeline.workers import open_runner
from stages.config import Config
from stages.context import Artefacts, Context, Node
from stages.errors import ConfigError, SaidElsewhere, StageError

_TO_SAY_IT_S = 1.0
"""torchrun ends all processes when one has ended: those that stay silent give the one that speaks this time."""


def execute(
    body: Callable[[Config, Context], None],
    *,
    name: str,
    project: Path,
    params_file: Path,
    overrides: Iterable[str],
    tensors: bool,
    torchrun: bool,
    debug: bool,
    root: str | None = None,
    takes_workers: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    as_json: bool = False,
    logged: bool = True,
) -> None:
    """Check the parameters and run `body` of the stage `name`; `root`: the remote root of the cache, where it has one.

    A stage that `takes_workers` shares its work with `workers` processes on this machine (else `machine.workers`), or with
    those of the Dask `scheduler`.

    `as_json`: its results are one JSON object. `logged`: what it reports is appended to `runs/logs/<name>.log` too.

    Leaves the process, with a message and an exit code, for everything a user can do something about.
    """
    with StopRequest() as stop, reported(stop, debug=debug):
        ranks = Ranks.from_environment()
        if ranks.world_size > 1:
            stop.as_one_of_several(speaks=ranks.rank == 0)
        with _said_once(ranks):
            config = read_config(params_file, overrides)  # before any library that takes seconds to import
        if ranks.world_size > 1 and not torchrun:
            raise ConfigError(
                f"pipeline {name} was started as {ranks.world_size} processes (WORLD_SIZE); it is one process: start it without torchrun"
            )
        quiet_libraries(debug=debug)
        if takes_workers and workers is None and scheduler is None:
            workers = config.machine.workers
        artefacts = Artefacts(project=project, kept_in=original_of(project), root=root)
        log = LogFile(artefacts.runs / "logs" / f"{name}.log") if logged else None
        with make_reporter(name, ranks.rank, as_json=as_json, log=log) as progress:
            with _said_once(ranks):
                context = _context(config, artefacts, ranks, stop, progress, tensors=tensors)
            with open_runner(
                config,
                workers=workers,
                scheduler=scheduler,
                project=project,
                device=context.device,
                tensors=tensors,
                debug=debug,
                progress=progress,
            ) as runner:
                body(config, replace(context, runner=runner))


@contextmanager
def _said_once(ranks: Ranks) -> Iterator[None]:
    """Where all processes of a node fail alike, the first of them says it."""
    try:
        yield
    except StageError as error:
        if ranks.local_rank > 0:
            time.sleep(_TO_SAY_IT_S)
            raise SaidElsewhere(type(error)) from error
        raise


def _context(
    config: Config, artefacts: Artefacts, ranks: Ranks, stop: StopRequest, progress: Reporter, *, tensors: bool
) -> Context:
    device, threads = "cpu", config.machine.threads or available_cores()
    if tensors:
        from stages import device as tensor_device

        device = tensor_device.resolve_device(config.machine.device, ranks.local_rank, ranks.local_size)
        threads = tensor_device.set_up(device, config.machine.threads)
    return Context(
        artefacts=artefacts,
        device=device,
        threads=threads,
        rank=ranks.rank,
        world_size=ranks.world_size,
        node=Node(rank=ranks.local_rank, size=ranks.local_size, launch=ranks.launch),
        should_stop=stop.requested,
        progress=progress,
        commit=git_commit(artefacts.project),
    )
