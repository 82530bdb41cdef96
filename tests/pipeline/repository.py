"""Real git and real DVC around a tiny project."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tiny import ROOT, write_project

GIT = (
    "-c",
    "user.name=Test",
    "-c",
    "user.email=test@example.org",
    "-c",
    "init.defaultBranch=main",
    "-c",
    "commit.gpgsign=false",
)


def stages_run(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


class Repository:
    """A git repository with DVC in it; `dvc` and `git` run there as a user's shell would.

    `environment`: in the place of this process's.
    """

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        if environment is not None:
            self.environment = dict(environment)
            return
        # DVC keeps state about repositories outside them; each test folder has its own.
        private = folder.parent / f".{folder.name}-private"
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(private / "site"),
            "DVC_GLOBAL_CONFIG_DIR": str(private / "config"),
            "DVC_SYSTEM_CONFIG_DIR": str(private / "system"),
            "OMP_NUM_THREADS": "1",
        }

    @classmethod
    def create(cls, folder: Path, **overrides) -> Repository:
        """The tiny project under git and DVC, committed; DVC has this repository's own settings."""
        write_project(folder, **overrides)
        repository = cls(folder)
        repository.git("init", "-q")
        repository.dvc("init", "-q")
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        repository.commit("a tiny project")
        return repository

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the repository; its output is in the error where it fails."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}")
        return done

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`dvc ...`."""
        return self.run("dvc", *arguments, check=check)

    def git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`git ...`."""
        return self.run("git", *GIT, *arguments)

    def commit(self, message: str) -> None:
        """Commit everything."""
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command in a process group of its own, so that all of it can be killed."""
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end_when(self, number: signal.Signals, pattern: str, count: int, *command: str) -> None:
        """Start a command, wait until so many files match, and send it and all its children a signal, as a terminal would."""
        process = self.start(*command)
        while process.poll() is None and len(list(self.folder.glob(pattern))) < count:
            time.sleep(0.01)
        assert process.poll() is None, f"{' '.join(command)} ended before it was to be ended"
        os.killpg(process.pid, number)
        process.wait()

    def json(self, path: str):
        """A JSON file of the repository."""
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def root_digest(self) -> str:
        """Of the cache."""
        return self.json("cache/current/manifest.json")["root_digest"]

    def student(self) -> bytes:
        """The trained weights."""
        return (self.folder / "models" / "student" / "model.safetensors").read_bytes()
