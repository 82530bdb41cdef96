"""Terminals and pipes for what a person sees: a real pseudo-terminal around a process, and a stream that says it is one."""

from __future__ import annotations

import errno
import io
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOW_CURSOR, HIDE_CURSOR, ERASE_LINE = "\x1b[?25h", "\x1b[?25l", "\x1b[2K"
LOOKS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONIOENCODING")
"""Variables that change how output looks."""


class Screen(io.TextIOWrapper):
    """What is written to a terminal, without a process of its own; COLUMNS gives its width."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self) -> bool:
        return True

    def written(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def run_on_terminal(program: str, columns: int, **environment: str) -> tuple[int, str]:
    """Run Python code with all streams on a terminal; give its exit code and all that it wrote there."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, columns))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=plain_environment(**{"TERM": "xterm-256color", **environment}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with os.fdopen(ours, "rb", buffering=0) as screen:
        written = b"".join(iter(lambda: _read(screen.fileno()), b""))
    return process.wait(), written.decode().replace("\r\n", "\n")


def run_piped(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with its streams in pipes."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=plain_environment(**environment),
        capture_output=True,
        text=True,
        check=True,
    )


def plain_environment(**changes: str) -> dict[str, str]:
    """Ours without the settings that say how output looks."""
    return {name: value for name, value in os.environ.items() if name not in LOOKS} | changes


def visible(written: str) -> str:
    """Without escape codes."""
    return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", written)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError as error:  # what Linux says when the last process has closed the other end
        if error.errno != errno.EIO:
            raise
        return b""
