"""An HTTP proxy between a client and a server that can be told what to do wrong, and notes what was asked."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Kind = Literal["500", "403", "drop", "truncate", "flip", "cut", "hold"]


@dataclass
class Fault:
    """What to do wrong with the next `times` requests of this method whose path contains `path`.

    `drop`: the connection breaks in the middle of the body. `truncate`: half of the body, and headers that say so.
    `flip`: one bit of the body. `cut`: half of the request's body is passed on, so that the store holds half an object.
    `hold`: no answer for as long as the proxy lives; `reached` says when it came to that.
    """

    kind: Kind
    method: str
    path: str = ""
    times: int = 1
    after: int = 0
    """So many such requests pass first."""
    reached: threading.Event = field(default_factory=threading.Event)


class FaultProxy(ThreadingHTTPServer):
    """Forwards to a port of this machine. `faults` and `requests` may be changed and read at any time."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        return self.server_address[1]

    def asked(self, method: str, path: str = "") -> int:
        """How many such requests came since `reset`."""
        return sum(method == m and path in p for m, p in self.requests)

    def reset(self) -> None:
        """No faults, nothing noted."""
        self.faults.clear()
        self.requests.clear()

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times:
                    if fault.after:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request, client_address) -> None:
        """A client that was killed or gave up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def log_message(self, *arguments) -> None:
        """Say nothing."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(self.command, self.path)
        kind = fault.kind if fault else None
        if kind == "hold":
            fault.reached.set()
            self.server.ended.wait()
            self.close_connection = True
            return
        if kind in {"500", "403"}:
            code = {"500": "InternalError", "403": "AccessDenied"}[kind]
            text = f"<Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
            self._answer(int(kind), [("Content-Type", "application/xml")], text, len(text))
            return
        headers = dict(self.headers.items())
        if kind == "cut":
            body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", self.server.upstream)
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data, length = response.read(), response.headers["Content-Length"]
        if kind == "truncate":
            data = data[: len(data) // 2]
            length = str(len(data))
        elif kind == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        headers = [(k, v) for k, v in response.headers.items() if not _is_of_the_connection(k)]
        if kind in {"truncate", "flip"}:  # as a store that holds such an object: its digests are those of what it holds
            headers = [(k, v) for k, v in headers if not k.lower().startswith("x-amz-checksum")]
        self._answer(response.status, headers, data, length or len(data), drop=kind == "drop")
        connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | str, drop=False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if drop:
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815  names of http.server


def _is_of_the_connection(header: str) -> bool:
    return header.lower() in {"content-length", "connection", "transfer-encoding", "date", "server"}


@contextmanager
def fault_proxy(upstream: int) -> Iterator[FaultProxy]:
    """A running proxy to `upstream`."""
    with FaultProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.ended.set()
            proxy.shutdown()
            thread.join()
