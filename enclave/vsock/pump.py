"""Carry bytes both ways between two connected sockets, as fast as one event loop can.

Raw sockets and reader callbacks, not asyncio streams: one receive and one send per chunk, no copy except
for what the sink does not take at once. A source is not read while its sink is behind, so a connection holds
at most one chunk.
"""

import asyncio
import socket

CHUNK = 128 * 1024
"""Size of the buffer that all pumps of one loop share: callbacks never overlap."""

CLOSED = "closed"  # both sides ended their half
IDLE = "idle"
RESET = "reset"


class Pump:
    """One connection: `left` and `right` are connected, non-blocking and owned by the caller."""

    def __init__(
        self,
        left: socket.socket,
        right: socket.socket,
        *,
        buffer: bytearray,
        idle_seconds: float,
        early: bytes = b"",
    ) -> None:
        """`early` is what the caller has read from `left` already and `right` must get first."""
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = idle_seconds
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[str] = self._loop.create_future()
        self._there = _Direction(self, left, right, buffer)
        self._back = _Direction(self, right, left, buffer)
        self._early = early

    @property
    def sent(self) -> int:
        """Bytes that went from left to right."""
        return self._there.count

    @property
    def received(self) -> int:
        """Bytes that went from right to left."""
        return self._back.count

    async def run(self) -> str:
        """Carry until both halves ended, one side broke, or nothing moved for the idle time; say which."""
        self._there.start(self._early)
        self._back.start(b"")
        self._timer = self._loop.call_later(self._idle_seconds, self._check_idle)
        try:
            return await self._done
        finally:
            self._timer.cancel()
            self._there.stop()
            self._back.stop()

    def touch(self) -> None:
        """Note that bytes moved."""
        self._last = self._loop.time()

    def finish(self, outcome: str) -> None:
        """End the connection."""
        self._there.stop()
        self._back.stop()
        if not self._done.done():
            self._done.set_result(outcome)

    def direction_ended(self) -> None:
        """End the connection when the other half has ended too."""
        if self._there.ended and self._back.ended:
            self.finish(CLOSED)

    def _check_idle(self) -> None:
        left = self._last + self._idle_seconds - self._loop.time()
        if left <= 0:
            self.finish(IDLE)
        else:
            self._timer = self._loop.call_later(left, self._check_idle)


class _Direction:
    __slots__ = ("_buffer", "_loop", "_pending", "_pump", "_sink", "_source", "_view", "count", "ended")

    def __init__(self, pump: Pump, source: socket.socket, sink: socket.socket, buffer: bytearray) -> None:
        self._loop = asyncio.get_running_loop()
        self._pump = pump
        self._source = source
        self._sink = sink
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._pending = memoryview(b"")
        self.count = 0
        self.ended = False

    def start(self, early: bytes) -> None:
        if early:
            self.count = len(early)
            self._hold(memoryview(early))
        else:
            self._loop.add_reader(self._source, self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _hold(self, data: memoryview) -> None:
        """Keep what the sink did not take; read no more until it has."""
        self._pending = data
        self._loop.remove_reader(self._source)
        self._loop.add_writer(self._sink, self._on_writable)

    def _on_readable(self) -> None:
        try:
            size = self._source.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._pump.finish(RESET)
            return
        self._pump.touch()
        if size == 0:
            self._end()
            return
        self.count += size
        taken = self._send(self._view[:size])
        if taken is not None and taken < size:
            self._hold(memoryview(bytes(self._view[taken:size])))

    def _on_writable(self) -> None:
        taken = self._send(self._pending)
        if taken is None:
            return
        if taken:
            self._pump.touch()
        self._pending = self._pending[taken:]
        if not self._pending:
            self._loop.remove_writer(self._sink)
            self._loop.add_reader(self._source, self._on_readable)

    def _send(self, data: memoryview) -> int | None:
        """Return how much the sink took, None when it is broken and the connection over."""
        try:
            return self._sink.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._pump.finish(RESET)
            return None

    def _end(self) -> None:
        self.ended = True
        self._loop.remove_reader(self._source)
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._pump.finish(RESET)
            return
        self._pump.direction_ended()
