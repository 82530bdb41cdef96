"""Fixtures: remote roots of every kind, the S3 one behind a proxy that makes faults."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from storage.remote import RemoteFolder
from tests.storage.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.storage.s3_server import BUCKET, environment, s3_server

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3_proxy():
    """The proxy before a running S3 server with one empty bucket; this process and its children go through it."""
    pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[server]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    with s3_server() as port, fault_proxy(port) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(proxy.port).items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(s3_proxy):
    """URL of an empty root, and the proxy before it, without faults."""
    s3_proxy.reset()
    yield f"s3://{BUCKET}/{uuid4().hex}", s3_proxy
    s3_proxy.reset()


@pytest.fixture
def memory():
    """URL of an empty root: the quickest kind, for what does not depend on it."""
    return f"memory://{uuid4().hex}"


@pytest.fixture(params=["memory", "file", "s3"])
def url(request, tmp_path):
    """URL of an empty root of each kind."""
    match request.param:
        case "memory":
            return request.getfixturevalue("memory")
        case "file":
            return f"file://{tmp_path}/remote"
        case _:
            return request.getfixturevalue("s3")[0]


def opened(url: str) -> RemoteFolder:
    """The root, as the commands open it, but with short waits."""
    return RemoteFolder(url, first_wait=0.01)


def rewrite(url: str, name: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object where it lies."""
    folder = opened(url)
    folder._fs.pipe_file(folder._full(name), change(folder._fs.cat_file(folder._full(name))))


def killed_when(fault: Fault, proxy: FaultProxy, command: list) -> None:
    """Start a process, wait until the proxy holds its request, and kill it with SIGKILL."""
    proxy.faults.append(fault)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(list(map(str, command)), cwd=PROJECT, env=environment)
    assert fault.reached.wait(60), "the process never came so far"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    proxy.reset()
