"""Shards decoded ahead of their use, by a process of its own, into memory that is used again.

The order in which shards are needed is known beforehand, so a shard is decoded while the ones before it are in use. How
many are in memory is fixed: the loader waits for a slot that nobody needs any more.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable
from contextlib import suppress
from multiprocessing.connection import Pipe, wait
from types import TracebackType
from typing import Self

from storage import errors
from storage.arrays import TARGETS, Target
from storage.errors import CacheError
from storage.layout import ShardId
from storage.loader_process import SharedBy, end, join, start
from storage.reader import CacheReader
from storage.shard import assemble, shard_memory
from storage.shard_arrays import ShardArrays

_SECONDS_TO_SEE_IT_END = 10


class ShardLoader:
    """Decodes the `targets` of the shards of `order` ahead, into `slots` pieces of memory of `slot_bytes` bytes each.

    `order` yields (window, shard): windows ascend, and all shards of a window must fit into memory at the same time. A
    shard that comes again while it is still in memory is not read again. At most `slots` visits are under way, so
    `order` may be endless.

    The processes of one node may share a loader (`shared_by`), each with an equal one of these: a shard is decoded once,
    when the last of them has come to ask for it.

    A context manager: leaving it ends the process.
    """

    def __init__(
        self,
        reader: CacheReader,
        order: Iterable[tuple[int, ShardId]],
        *,
        slots: int,
        slot_bytes: int,
        targets: Collection[Target] = TARGETS,
        shared_by: SharedBy | None = None,
    ) -> None:
        self.waited_s = 0.0
        """Seconds that `get` has waited for shards that were not there yet."""
        self._reader, self._order, self._targets = reader, iter(order), targets
        self._visits: deque[tuple[int, ShardId]] = deque()
        self._uses: Counter[ShardId] = Counter()  # visits under way, by shard
        self._slot_of: dict[ShardId, int] = {}
        self._idle: OrderedDict[ShardId, None] = OrderedDict()  # in a slot, without a visit; the oldest first
        self._free = list(range(slots))
        self._loading: set[ShardId] = set()
        self._arrays: dict[ShardId, ShardArrays] = {}
        self._failed: dict[ShardId, CacheError] = {}
        self._interruption, self._interrupter = Pipe(duplex=False)
        self._process: subprocess.Popen[bytes] | None = None
        if shared_by is None or shared_by.rank == 0:
            self._connection, self._memory, self._process = start(reader, slots, slot_bytes, targets, shared_by)
        else:
            self._connection, self._memory = join(shared_by)
        # Also for one that nobody closes: a generator that was left early, say.
        self._end = weakref.finalize(self, end, self._connection, self._memory, self._process, shared_by)
        self._fill()

    def get(self, window: int, shard: ShardId) -> ShardArrays:
        """The arrays of a shard of `window`, as soon as it is decoded. Windows before it are over, as after `advance`.

        The arrays lie in a slot: they are valid until a later window is asked for, and what is to last is to be copied.

        Raises what `CacheReader.load` raises, for this shard, and `CacheError` where the process has ended.
        """
        self.advance(window)
        if shard not in self._slot_of:
            raise ValueError(
                f"shard {shard} of window {window} is not among the next {self._memory.count} of the order"
            )
        started = time.monotonic()
        while shard in self._loading:
            self._receive()
        self.waited_s += time.monotonic() - started
        if shard in self._failed:
            raise self._failed[shard]
        if shard not in self._arrays:
            self._arrays[shard] = self._assemble(shard)
        return self._arrays[shard]

    def advance(self, window: int) -> None:
        """End the windows before this one, so that their slots can be used again.

        Processes that share a loader must come to the same windows, also those that they take nothing from. One window after the
        other, so that all of them choose the same slots.
        """
        while self._visits and (over := self._visits[0][0]) < window:
            while self._visits and self._visits[0][0] == over:
                self._end_visit(self._visits.popleft()[1])
            self._fill()

    def interrupt(self) -> None:
        """From another thread: a `get` that waits, now or later, raises `CacheError` instead. What remains is to close."""
        self._interrupter.send_bytes(b"!")

    @property
    def process_id(self) -> int | None:
        """Of the process that decodes; None where another process started it."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process and give the memory back. Arrays that are still held keep theirs."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self) -> None:
        """Begin as many visits as there are slots."""
        while len(self._visits) < self._memory.count:
            visit = next(self._order, None)
            if visit is None:
                return
            self._visits.append(visit)
            shard = visit[1]
            self._uses[shard] += 1
            self._idle.pop(shard, None)
            if shard not in self._slot_of:
                self._load(shard, self._take_slot())

    def _end_visit(self, shard: ShardId) -> None:
        self._uses[shard] -= 1
        if not self._uses[shard]:
            del self._uses[shard]
            self._idle[shard] = None

    def _take_slot(self) -> int:
        """One that no visit needs. There is one: each shard with a visit has one slot, and visits are no more than slots."""
        if self._free:
            return self._free.pop()
        oldest, _ = self._idle.popitem(last=False)
        while oldest in self._loading:  # it was never asked for
            self._receive()
        self._arrays.pop(oldest, None)
        self._failed.pop(oldest, None)
        return self._slot_of.pop(oldest)

    def _load(self, shard: ShardId, slot: int) -> None:
        self._slot_of[shard] = slot
        self._loading.add(shard)
        try:
            self._connection.send_bytes(json.dumps([str(shard), slot]).encode())
        except OSError as error:
            raise self._ended(shard) from error

    def _receive(self) -> None:
        """One answer of the process: a shard is in its slot, or why it is not."""
        if self._interruption in wait([self._connection, self._interruption]):
            raise CacheError("reading was interrupted; expected nobody to wait for a shard any more")
        try:
            name, kind, message = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._ended(min(self._loading)) from error
        shard = ShardId.parse(name)
        self._loading.discard(shard)
        if kind is not None:
            self._failed[shard] = getattr(errors, kind, CacheError)(message)

    def _assemble(self, shard: ShardId) -> ShardArrays:
        description, counts = self._reader.description, self._reader.shard_counts(shard)
        allocate = self._memory.allocator(self._slot_of[shard])
        memory = shard_memory(description, shard, counts, self._targets, allocate)
        for _, array in memory:
            array.flags.writeable = False
        return assemble(description, shard, {spec.name: array for spec, array in memory})

    def _ended(self, shard: ShardId) -> CacheError:
        how = ""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(_SECONDS_TO_SEE_IT_END)
                how = f" ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        return CacheError(
            f"shard {shard}: the process that reads shards has ended{how}; where the system ran out of memory, lower "
            "machine.shard_memory_gb; then run the same command again"
        )
