"""The package as it is given to others."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.tiny import ROOT


def build_wheel(folder: Path) -> Path:
    """The wheel of this project, built in `folder` from the files that git tracks and nothing else."""
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, check=True)
    shutil.rmtree(source)
    [wheel] = folder.glob("*.whl")
    return wheel
