"""uvicorn's HTTP protocol with the bounds that it lacks: time to send a request, and size of its head."""

import asyncio
from typing import Annotated, Any, cast

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from enclave.serving.ending import ENDING, Ending

_Seconds = Annotated[float, msgspec.Meta(gt=0)]

_FED_AT_ONCE = 16 * 1024
"""Bytes, so that a head cannot grow far beyond its bound before anybody looks: sockets give up to 256 KiB."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one server grants its peers; times are seconds."""

    connections: int = 1024  # those in handshake and those closing included
    handshake_seconds: _Seconds = 5.0
    close_seconds: _Seconds = 5.0  # from close_notify until the connection is cut
    idle_seconds: _Seconds = 10.0  # after the handshake, until a request begins
    request_seconds: _Seconds = 30.0  # head and body of one request
    stall_seconds: _Seconds = 30.0  # a peer that reads nothing of a response
    keep_alive_seconds: int = 15  # between requests
    head_bytes: int = 64 * 1024  # request line, headers, chunk framing and trailers of one request


class BoundedHttpProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection whose requests arrive in bounded time and whose heads are bounded."""

    def __init__(self, *, limits: Limits, **uvicorn_arguments: Any) -> None:  # noqa: ANN401 - passed through
        super().__init__(**uvicorn_arguments)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self.is_receiving = False
        """A request has begun and is not complete."""
        self._fed = 0
        self._body = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first request, or turn the connection away."""
        super().connection_made(cast("asyncio.Transport", transport))
        if len(self.connections) > self._limits.connections:
            self.transport.abort()
            return
        self._start_timer(self._limits.idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, which itself would buffer a head of any size."""
        if len(data) <= _FED_AT_ONCE:
            self._feed(data)
            return
        for start in range(0, len(data), _FED_AT_ONCE):
            if self.transport.is_closing():
                return
            self._feed(data[start : start + _FED_AT_ONCE])

    def _feed(self, data: bytes) -> None:
        # The piece that a head begins in is not counted, and framing may be as large as the body: neither
        # grows without bound.
        if self.is_receiving and self._fed - self._body > self._limits.head_bytes + self._body:
            self.send_400_response("Request head too large.")
            return
        self._fed += len(data)
        super().data_received(data)
        if self._timer is None and not self.is_receiving and self._awaits_request():
            self._start_timer(self._limits.idle_seconds)  # bytes between requests ended uvicorn's own timer

    def on_message_begin(self) -> None:
        """Give the request its time."""
        super().on_message_begin()
        self.is_receiving = True
        self._fed = 0
        self._body = 0
        self._start_timer(self._limits.request_seconds)

    def on_body(self, body: bytes) -> None:
        """Tell body from head."""
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock."""
        self.is_receiving = False
        self._stop_timer()
        super().on_message_complete()

    def _awaits_request(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None until the first request
        answered = cycle is None or cycle.response_complete
        return answered and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        self.transport.abort()


class PlainHttpProtocol(BoundedHttpProtocol):
    """The same right on a socket, where TLS does not see to the end of either side.

    A client may end its side once its request is sent, and wait for ours to end (the JavaScript SDK of
    upstream's does): it gets its whole answer, and then the connection is closed. An answer without an end
    finds in its scope's `state` when to end (`Ending`).
    """

    def __init__(self, *, limits: Limits, **uvicorn_arguments: Any) -> None:  # noqa: ANN401 - passed through
        super().__init__(limits=limits, **uvicorn_arguments)
        self._stalled: asyncio.TimerHandle | None = None
        self._peer_finished = False
        self._ending = Ending()

    def on_message_begin(self) -> None:
        """Tell the application where it learns that nobody waits."""
        super().on_message_begin()
        self.scope["state"][ENDING] = self._ending

    def shutdown(self) -> None:
        """End answers that have no end; one that nobody reads is cut off."""
        super().shutdown()
        if self._ending.is_watched and self.flow.write_paused:
            self.transport.abort()
        self._ending.come()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._end_stall()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps a connection
        """Keep the connection for the answers that are owed; close it where there are none."""
        self._peer_finished = True
        self._ending.come()
        return self._owes_answer()

    def on_response_complete(self) -> None:
        """Close after the last answer to a client that will ask nothing more."""
        super().on_response_complete()
        if self._peer_finished and not self._owes_answer():
            self.transport.close()

    def pause_writing(self) -> None:
        """Give the peer its time to read on."""
        super().pause_writing()
        self._end_stall()
        self._stalled = self.loop.call_later(self._limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        super().resume_writing()
        self._end_stall()

    def _owes_answer(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # the newest, answered last
        return cycle is not None and not cycle.response_complete and not self.is_receiving

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
