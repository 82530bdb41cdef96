"""`pipeline` commands as real processes, several of one launch where asked for.

They are forked from a server that has imported the libraries once, so that one starts in milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pipeline.cli", "stages.train_student", "tests.stages.training.launch"])


def _main(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    os.setsid()
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["pipeline", *arguments]
    from pipeline.__main__ import main

    main()


class Launch:
    """A command in `processes` processes that find each other as those of torchrun do. Leaving the block ends them."""

    def __init__(
        self, folder: Path, *arguments: object, processes: int = 1, environment: dict[str, str] | None = None
    ) -> None:
        self.output = folder / "output.txt"
        self.output.unlink(missing_ok=True)
        words = [*map(str, arguments), "--project", str(folder)]
        self.processes = [
            _SERVER.Process(target=_main, args=(words, {**of_launch, **(environment or {})}, self.output))
            for of_launch in _environments(processes)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def codes(self, seconds: float = 120) -> list[int | None]:
        """The exit codes, by rank, once all have ended."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.processes[rank].pid, number)

    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        text = self.output.read_text()
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if line.startswith("error: ")]

    def until(self, seen, seconds: float = 60) -> None:
        """Wait until `seen()`, as long as they run."""
        deadline = time.monotonic() + seconds
        while not seen():
            assert any(process.is_alive() for process in self.processes), self.output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)


def _environments(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
