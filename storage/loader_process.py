"""The process that decodes shards for a `ShardLoader`: how it is started, joined by other processes of the node, and ended.

Each process of the node that shares it sends the same requests, (shard, slot), in the same order, as it comes to need them.
A request is served when all have sent it: then none of them uses what lay in the slot before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from storage.arrays import Target
from storage.errors import CacheError
from storage.layout import ShardId
from storage.reader import CacheReader
from storage.shard import Allocate
from storage.shard_arrays import ShardArrays
from storage.slots import Slots

_CHILD = "import sys; sys.path[:] = {path!r}; from storage.loader_process import main; main(*map(int, sys.argv[1:]))"
_SECONDS_TO_END = 10
_SECONDS_TO_JOIN = 300
"""The first process of a node may be slower to open the cache than the others."""
_NOBODY = -1
_IGNORED = (signal.SIGINT, signal.SIGTERM)
_END = b""
"""The last message. A closed connection alone may not be seen: a process that was forked meanwhile holds it open."""


@dataclass(frozen=True, kw_only=True)
class SharedBy:
    """The processes of one node that share a loader."""

    rank: int
    """Of this process among them: 0 starts the loader, the others join it."""
    size: int
    address: Path
    """Of a Unix socket, the same for all of them and for nobody else."""


def start(
    reader: CacheReader, slots: int, slot_bytes: int, targets: Collection[Target], shared_by: SharedBy | None
) -> tuple[Connection, Slots, subprocess.Popen[bytes]]:
    """The connection to a new process, the memory, and the process.

    Not by multiprocessing: its children run the main module of their parent once more, which a user's script may not
    be made for, and forking is not safe where torch has threads.
    """
    memory = Slots(slots, slot_bytes)
    ours, theirs = Pipe()
    listener = None if shared_by is None or shared_by.size == 1 else _listen(shared_by)
    others = 0 if shared_by is None else shared_by.size - 1
    inherited = [theirs.fileno(), memory.descriptor, *([] if listener is None else [listener.fileno()])]
    arguments = (
        theirs.fileno(),
        memory.descriptor,
        slots,
        slot_bytes,
        _NOBODY if listener is None else listener.fileno(),
        others,
    )
    # It inherits what is blocked, and so is deaf to a signal to the whole group from its first moment (see `main`).
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(path=sys.path), *map(str, arguments)],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    if listener is not None:
        listener.close()
    with suppress(OSError):  # one that ended at once is noticed when its first answer is waited for
        ours.send((reader, list(targets)))
    return ours, memory, process


def join(shared_by: SharedBy) -> tuple[Connection, Slots]:
    """The connection to the process that the first one of this node has started or will start, and the memory.

    Raises `CacheError` where nobody starts one.
    """
    deadline = time.monotonic() + _SECONDS_TO_JOIN
    while True:
        found = socket.socket(socket.AF_UNIX)
        try:
            found.connect(str(shared_by.address))
            content, descriptors, _, _ = socket.recv_fds(found, 1024, 1)
            if descriptors:
                break
        except (FileNotFoundError, ConnectionError):
            pass
        found.close()
        if time.monotonic() > deadline:
            raise CacheError(
                f"the first process of this node has started no process that reads shards within {_SECONDS_TO_JOIN} s "
                f"({shared_by.address}); see what it says, then run the same command again"
            )
        time.sleep(0.05)
    count, size = json.loads(content)
    return Connection(found.detach()), Slots(count, size, descriptors[0])


def end(
    connection: Connection, memory: Slots, process: subprocess.Popen[bytes] | None, shared_by: SharedBy | None
) -> None:
    """Ask for no more and give the memory back; where this process started the other, see it end.

    One that others use goes on until the last of them has ended.
    """
    with suppress(OSError):
        connection.send_bytes(_END)
    connection.close()
    memory.close()
    if process is None:
        return
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:  # a disk that does not answer
        if shared_by is None:
            process.kill()
            process.wait()


def _listen(shared_by: SharedBy) -> socket.socket:
    """A socket that only this user can connect to; one that a killed run left is replaced."""
    shared_by.address.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(shared_by.address))
    shared_by.address.chmod(0o600)  # nobody can connect before `listen`
    listener.listen(shared_by.size)
    return listener


def main(connection: int, descriptor: int, count: int, size: int, listener: int, others: int) -> None:
    """What the process does, until those that use it have closed their connections or ended."""
    # A job that is asked to stop makes its last step and its checkpoint first, and needs shards for that.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(connection)
    try:
        reader, targets = pipe.recv()  # one at a remote root is opened anew
    except EOFError:
        return
    except (CacheError, OSError, MemoryError) as error:
        reader, targets = _Unopened(_as_cache_error("the cache", error)), []
    door = None if listener == _NOBODY else _Door(socket.socket(fileno=listener), others)
    _Service(reader, targets, Slots(count, size, descriptor), pipe, door).run()
    # Not by returning: a download that is read ahead would be waited for. What it leaves is what a kill leaves.
    os._exit(0)


def _as_cache_error(what: str, error: Exception) -> CacheError:
    if isinstance(error, CacheError):
        return error
    reason = "memory ran out" if isinstance(error, MemoryError) else " ".join(str(error).split())
    return CacheError(
        f"{what} could not be read ({type(error).__name__}: {reason}); see to that, then run the same command again"
    )


class _Unopened:
    """Stands for a reader that could not be opened: every shard has the same error."""

    def __init__(self, error: CacheError) -> None:
        self._error = error

    def prefetch(self, shards: Iterable[ShardId]) -> None:
        """Fetch nothing."""

    def load(self, shard: ShardId, allocate: Allocate, *, targets: Collection[Target]) -> ShardArrays:
        """Raise what opening raised."""
        del shard, allocate, targets
        raise self._error


@dataclass
class _Door:
    """Where the other processes of the node come in."""

    listener: socket.socket
    expected: int

    def let_in(self, memory: Slots) -> Connection:
        """The connection to one more process, which is given the memory. One that has died meanwhile is seen to be gone later."""
        guest, _ = self.listener.accept()
        with suppress(OSError):
            socket.send_fds(guest, [json.dumps([memory.count, memory.size]).encode()], [memory.descriptor])
        self.expected -= 1
        if not self.expected:
            Path(self.listener.getsockname()).unlink(missing_ok=True)
            self.listener.close()
        return Connection(guest.detach())


class _Service:
    """Decodes the shards that are asked for, one after the other, each into its slot."""

    def __init__(
        self,
        reader: CacheReader | _Unopened,
        targets: Collection[Target],
        memory: Slots,
        first: Connection,
        door: _Door | None,
    ) -> None:
        self._reader, self._targets, self._memory, self._door = reader, targets, memory, door
        self._asked: dict[Connection, deque[tuple[ShardId, int]]] = {first: deque()}

    def run(self) -> None:
        """Serve until nobody is left."""
        while self._asked:
            ready = self._is_ready()
            self._listen(timeout=0 if ready else None)
            if self._is_ready():
                self._serve_one()

    def _is_ready(self) -> bool:
        """Whether all processes have come, and all have sent the next request."""
        return (self._door is None or not self._door.expected) and bool(self._asked) and all(self._asked.values())

    def _listen(self, timeout: float | None) -> None:
        """Take what has been sent, and let in who has come."""
        door = self._door if self._door is not None and self._door.expected else None
        for source in wait([*self._asked, *([] if door is None else [door.listener])], timeout):
            if isinstance(source, Connection):
                self._take(source)
            elif door is not None:
                self._asked[door.let_in(self._memory)] = deque()

    def _take(self, source: Connection) -> None:
        try:
            while source.poll():
                message = source.recv_bytes()
                if message == _END:
                    raise EOFError  # noqa: TRY301  the same as a closed connection
                name, slot = json.loads(message)
                self._asked[source].append((ShardId.parse(name), slot))
        except (EOFError, OSError):  # it needs no more shards
            del self._asked[source]

    def _serve_one(self) -> None:
        """Load the shard that all ask for, and tell them."""
        self._reader.prefetch([shard for shard, _ in next(iter(self._asked.values()))])
        requests = {connection: asked.popleft() for connection, asked in self._asked.items()}
        error = _disagreement(set(requests.values()))
        if error is None:
            shard, slot = next(iter(requests.values()))
            try:
                self._reader.load(shard, self._memory.allocator(slot), targets=self._targets)
            except (CacheError, OSError, MemoryError) as raised:
                error = _as_cache_error(f"shard {shard}", raised)
        what = (None, None) if error is None else (type(error).__name__, str(error))
        for connection, (shard, _) in requests.items():
            try:
                connection.send_bytes(json.dumps([str(shard), *what]).encode())
            except OSError:
                del self._asked[connection]


def _disagreement(requests: set[tuple[ShardId, int]]) -> CacheError | None:
    if len(requests) == 1:
        return None
    shards = ", ".join(str(shard) for shard, _ in sorted(requests))
    return CacheError(
        f"the processes of this node ask for different shards at the same time, {shards}; "
        "start all of them with the same parameters and the same cache"
    )
