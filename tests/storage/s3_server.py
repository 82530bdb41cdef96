"""A real S3-speaking server in a process of its own, on the loopback interface."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "caches"


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server that is ready; it ends with the context."""
    # A file, not a pipe: the server writes a line per request, and a pipe that nobody empties stops it.
    with (
        tempfile.NamedTemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"], stdout=said, stderr=said
        ) as server,
    ):
        try:
            yield _port(server, Path(said.name))
        finally:
            server.kill()


def _port(server: subprocess.Popen[bytes], said: Path) -> int:
    while server.poll() is None:
        if match := re.search(r"Running on http://127\.0\.0\.1:(\d+)", said.read_text()):
            return int(match[1])
        time.sleep(0.02)
    raise AssertionError(f"the S3 server did not start:\n{said.read_text()}")


def environment(port: int) -> dict[str, str]:
    """What tells botocore where the server is. One attempt: what is tested is what we do when it fails."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
