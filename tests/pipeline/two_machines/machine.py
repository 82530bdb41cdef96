"""A computer of its own on this one, as far as its programs can tell."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from tests.pipeline.repository import Repository

GIT_SETTINGS = """
[user]
    name = {user}
    email = {user}@example.org
[init]
    defaultBranch = main
[commit]
    gpgsign = false
"""


class Machine:
    """A home folder, an environment that begins empty, settings and caches of its own, and a virtual environment with this project in it.

    What it shares with other machines: the processor, the loopback interface, and the packages that the project needs,
    which are too large to be installed twice. `aws` are the lines of `~/.aws/credentials` and `~/.aws/config`.
    """

    def __init__(self, folder: Path, user: str, wheel: Path, aws: Mapping[str, Mapping[str, str]]) -> None:
        self.folder, self._python = folder, folder / "venv"
        self.home = folder / "home" / user
        programs = [self._python / "bin", Path(shutil.which("git") or "").parent, "/usr/bin", "/bin"]
        self.environment = {
            "HOME": str(self.home),
            "USER": user,
            "LANG": "C.UTF-8",
            "PATH": ":".join(map(str, programs)),
            "TMPDIR": str(folder / "tmp"),
            "GIT_CONFIG_NOSYSTEM": "1",
            # Where DVC keeps what is common to all users of a machine, unless it is told otherwise.
            "DVC_SITE_CACHE_DIR": str(folder / "var" / "dvc"),
            "DVC_SYSTEM_CONFIG_DIR": str(folder / "etc" / "dvc"),
            "DVC_NO_ANALYTICS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        for path in (self.home / ".aws", folder / "tmp"):
            path.mkdir(parents=True)
        (self.home / ".gitconfig").write_text(GIT_SETTINGS.format(user=user), encoding="utf-8")
        for name, values in aws.items():
            lines = ["[default]", *(f"{key} = {value}" for key, value in values.items()), ""]
            (self.home / ".aws" / name).write_text("\n".join(lines), encoding="utf-8")
        self._install(wheel)

    def _install(self, wheel: Path) -> None:
        venv.create(self._python, symlinks=True)
        packages = Path(
            sysconfig.get_path("purelib", "venv", {"base": str(self._python), "platbase": str(self._python)})
        )
        # A path in a .pth file brings the packages there, but not what is installed there by a .pth file, such as this checkout.
        (packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
        python = str(self._python / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
        dvc = self._python / "bin" / "dvc"
        dvc.write_text(f'#!/bin/sh\nexec "{python}" -m dvc "$@"\n', encoding="utf-8")
        dvc.chmod(0o755)

    def at(self, name: str) -> Repository:
        """A folder in the user's home, where commands are run."""
        return Repository(self.home / name, self.environment)

    def clone(self, url: Path, name: str, *, branch: str = "main") -> Repository:
        """`git clone`, into a folder of the user's home."""
        Repository(self.home, self.environment).run("git", "clone", "-q", "-b", branch, str(url), name)
        return self.at(name)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Nothing of it can be reached: no project, no cache of DVC, no program, under any path that it ever had."""
        away = self.folder.with_name(uuid4().hex)
        self.folder.rename(away)
        try:
            yield
        finally:
            away.rename(self.folder)
