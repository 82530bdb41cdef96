"""The workers of a Dask cluster that is there already, and what they must have in common with this process."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from pipeline.workers.logs import logged_to
from stages.context import Progress
from stages.errors import LostWorkersError
from storage.files import TEMPORARY, writing

SAME = ("teacher-cache", "distributed", "numpy", "pyarrow", "tokenizers", "torch", "transformers", "zarr")
"""Packages whose versions must be the same: what travels is pickled, and the shards of one cache are alike, as are the parts of
one token store."""
CONNECT_SECONDS = 30
LEAST_TTL_SECONDS = 3600.0
"""A worker whose process is held up by an item for longer than the scheduler's worker-ttl is taken for dead."""


class Cluster:
    """The Dask cluster whose scheduler is at `address`."""

    patience_seconds: float | None = None
    """Workers may come later: those of a batch system or an adaptive cluster do."""
    drop_seconds = 20.0

    def __init__(self, address: str, project: Path, progress: Progress) -> None:
        self._address, self._project, self._progress = address, project, progress

    @property
    def hint(self) -> str:
        """Where to look when something went wrong."""
        return f"see the logs of the scheduler at {self._address} and its workers"

    @contextmanager
    def connected(self, at_once: int) -> Iterator[Client]:  # noqa: ARG002  how many threads a worker has is not ours to say
        """A client of the scheduler. Raises `LostWorkersError` where none answers."""
        with logged_to(self._project / ".cache-work" / "workers.log"):
            try:
                client = Client(self._address, timeout=CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError) as error:
                raise LostWorkersError(
                    f"no Dask scheduler answers at {self._address} ({error or type(error).__name__}); "
                    "expected the address that `dask scheduler` shows, such as tcp://node1:8786"
                ) from error
            with client:
                self._look_at_scheduler(client)
                yield client

    def check(self, client: Client, addresses: Sequence[str]) -> None:
        """Raise `LostWorkersError`, naming what is missing, where a worker cannot do the work.

        Raises `WriteError` where this process may not write in the project folder.
        """
        look = _look()
        probe = self._project / f"{TEMPORARY}probe-{secrets.token_hex(8)}"
        with writing("what the workers are to see", self._project):
            probe.touch()
        try:
            ours = look(str(probe), SAME)
            found = client.run(look, str(probe), SAME, workers=list(addresses), on_error="return")
        finally:
            probe.unlink(missing_ok=True)
        for address, said in found.items():
            wrong = self._wrong(said, ours)
            if wrong:
                raise LostWorkersError(f"the worker at {address} cannot do this work: {wrong}")

    def _wrong(self, said: Mapping[str, Any] | BaseException, ours: Mapping[str, Any]) -> str | None:
        if isinstance(said, BaseException):
            return f"it does not answer ({said!r})" if not isinstance(said, OSError) else None  # gone again
        for name in ours["versions"] if said["project"] else said["versions"]:
            has, expected = (versions.get(name, "unknown") for versions in (said["versions"], ours["versions"]))
            if has != expected:
                return f"it has {name} {has}; expected {expected}, as here: start it from the same environment"
        if not said["project"]:
            return (
                "it cannot import `pipeline`; install this project in its environment, the same way as here "
                "(`pip install`, or PYTHONPATH)"
            )
        if not said["sees"]:
            return (
                f"it does not see the project folder {self._project}; expected the same folder at the same path, on a file "
                "system that all machines share"
            )
        return None

    def _look_at_scheduler(self, client: Client) -> None:
        ttl = client.run_on_scheduler(_worker_ttl())
        if ttl is not None and ttl < LEAST_TTL_SECONDS:
            self._progress.message(
                f"the scheduler gives up workers that are silent for {ttl:.0f} s, and repeats their work; set "
                "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL='24 hours' where it is started"
            )


def _look() -> Callable[[str, Sequence[str]], dict[str, Any]]:
    # A function within a function travels as code: the worker need not be able to import this module.
    def look(probe: str, packages: Sequence[str]) -> dict[str, Any]:
        import importlib.metadata
        import importlib.util
        import pathlib
        import platform

        versions: dict[str, str | int] = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        try:
            project = importlib.util.find_spec("pipeline.workers.process") is not None
            from stages import config

            # What the same version of this project would do otherwise in a checkout that is older.
            algorithms = {**config.ALGORITHMS, **getattr(config, "DRAWS", {})}
            versions |= {f"algorithm {name}": number for name, number in algorithms.items()}
        except ImportError:
            project = False
        return {"versions": versions, "project": project, "sees": pathlib.Path(probe).is_file()}

    return look


def _worker_ttl() -> Callable[..., float | None]:
    def worker_ttl(dask_scheduler: Any = None) -> float | None:
        return dask_scheduler.worker_ttl  # type: ignore[no-any-return]

    return worker_ttl
