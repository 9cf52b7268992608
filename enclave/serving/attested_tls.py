"""Attested TLS in front of uvicorn, by pyOpenSSL over a memory BIO.

The stdlib's ssl does not do: it cannot accept self-issued client certificates.

What TLS proves here is possession of the key in the client's certificate. The chain, as sent, reaches the
application as `scope["state"]["peer_chain"]` (DER, leaf first; empty without a client certificate), and the
application decides who that is (`shared.ratls.peer`, spec kms 4.6).

The context factory is called for each connection: return one context until the certificate rotates, then
another. A context must neither cache sessions nor issue tickets, as `shared.ratls.tls.server_context` sees
to: a resumed session skips the verify callback.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec
import uvicorn
from OpenSSL import SSL, crypto
from starlette.types import ASGIApp

from enclave.log import log_event
from enclave.serving.http_protocol import BoundedHttpProtocol, Limits, PlainHttpProtocol
from enclave.serving.stopping import Draining, StoppableServer
from shared.errors import DstackError

if TYPE_CHECKING:
    from uvicorn.server import ServerState

ContextFactory = Callable[[], SSL.Context]

DEFAULT_LIMITS = Limits()

_WRITE_SLICE = 64 * 1024  # flushed one by one, so that a large response is not held twice
_BIO_READ = 32 * 1024  # an allocation of 64 KiB or more would tidy the whole heap when it ends
_RECORD = 16 * 1024  # the most that one TLS record carries

MAX_PEER_CHAIN = 3
"""Certificates that a client may send: its own, the CA's, and the root's. OpenSSL would keep hundreds of them
for as long as a connection is open, a megabyte for each."""


class _Front(msgspec.Struct, frozen=True):
    """What all connections of one server share."""

    context_factory: ContextFactory
    limits: Limits
    log: Callable[..., None]


class _TlsConnection(asyncio.Protocol, asyncio.Transport):
    """One connection: the protocol of the raw transport, and the transport of uvicorn's HTTP protocol.

    uvicorn makes it in place of its own protocol, and it makes uvicorn's after the handshake.
    """

    def __init__(
        self,
        front: _Front,
        config: uvicorn.Config,
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__()
        self._front = front
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._raw: asyncio.Transport
        self._tls: SSL.Connection
        self._http: BoundedHttpProtocol | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._peer_finished = False  # it said so, in TLS
        self._has_ended = False  # nothing more will come
        self._paused = False

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        limits = self._front.limits
        if len(self._uvicorn_connections) >= limits.connections:
            self._abort("tls.limit.connections")
            return
        try:
            self._tls = SSL.Connection(self._front.context_factory(), None)
        except (DstackError, SSL.Error, OSError) as error:
            self._abort("tls.context.unavailable", error)
            return
        self._tls.set_accept_state()
        # In uvicorn's own set too, so that a stopping server sees handshakes, calls shutdown() and waits.
        self._uvicorn_connections.add(self)
        self._start_timer(limits.handshake_seconds, "tls.handshake.timeout")

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # the peer may still be sending what nobody will read
        self._tls.bio_write(data)
        if self._http is None and not self._finish_handshake():
            return
        self._read()

    def eof_received(self) -> bool:
        # After close_notify the running response is still finished. A bare FIN is a cut connection. Which of
        # the two it is may stand behind what was not read yet.
        self._has_ended = True
        self._read()
        return (self._peer_finished or self._paused) and not self._closing

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._stop_timer()
        self._uvicorn_connections.discard(self)
        # each holds the other: what is not let go waits for the garbage collector
        http, self._http = self._http, None
        if http is not None:
            http.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()
        if not self._closing:
            self._start_timer(self._front.limits.stall_seconds, "tls.write.stalled")

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()
        if not self._closing:
            self._stop_timer()

    # From uvicorn, while the handshake runs

    def shutdown(self) -> None:
        """End a handshake because the server stops."""
        self._abort("tls.server.stopping")

    # From uvicorn's protocol, as its transport

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        if self._closing:
            return
        view = memoryview(data)
        try:
            for start in range(0, len(view), _WRITE_SLICE):
                self._tls.sendall(view[start : start + _WRITE_SLICE])
                self._flush()
        except SSL.Error as error:
            self._abort("tls.write.failed", error)

    def close(self) -> None:
        """Send close_notify and what is buffered, then close; not later than the close timeout."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()
        self._flush()
        self._start_timer(self._front.limits.close_seconds, "tls.close.timeout")
        if self._http is not None and self._http.is_receiving and not self._peer_finished:
            # Closing with unread input would reset the connection and destroy the answer: let the peer end.
            if self._paused:
                self._raw.resume_reading()
            self._raw.write_eof()
        else:
            self._raw.close()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def pause_reading(self) -> None:
        if not self._paused and not self._raw.is_closing():
            self._raw.pause_reading()
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused and not self._has_ended and not self._raw.is_closing():
            self._raw.resume_reading()
        self._paused = False
        self._loop.call_soon(self._read)  # what is decrypted or buffered already

    def abort(self) -> None:
        self._raw.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - asyncio's own shape
        if name == "sslcontext":  # what uvicorn takes the scheme from
            return self._tls.get_context()
        return self._raw.get_extra_info(name, default)

    # Inside

    @property
    def _uvicorn_connections(self) -> set[Any]:
        return cast("set[Any]", self._server_state.connections)

    def _finish_handshake(self) -> bool:
        """Go on with the handshake; return whether it is complete and uvicorn's protocol there."""
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        except (SSL.Error, DstackError) as error:
            self._flush()  # the alert
            self._close_raw("tls.handshake.failed", error)
            return False
        self._flush()
        self._stop_timer()
        peer_chain = _peer_chain(self._tls)
        if len(peer_chain) > MAX_PEER_CHAIN:
            self._note("tls.limit.chain")
            self.close()
            return False
        self._uvicorn_connections.discard(self)
        self._http = BoundedHttpProtocol(
            limits=self._front.limits,
            config=self._config,
            server_state=self._server_state,
            app_state={
                **self._app_state,
                "peer_chain": peer_chain,
                "connections": self._uvicorn_connections,
            },
            _loop=self._loop,
        )
        self._http.connection_made(self)
        return True

    def _read(self) -> None:
        """Hand over decrypted bytes until there are none, or uvicorn asks to pause."""
        http = self._http
        while http is not None and not self._paused and not self.is_closing() and not self._peer_finished:
            try:
                data = self._tls.recv(_RECORD)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                self._peer_finished = True
                self._finish_running(http)
                break
            except SSL.Error as error:
                self._flush()
                self._close_raw("tls.read.failed", error)
                return
            http.data_received(data)
        if not self._closing:
            self._flush()  # answers to key updates
            if self._has_ended and not self._peer_finished and not self._paused:
                self._closing = True
                self._raw.close()

    def _finish_running(self, http: BoundedHttpProtocol) -> None:
        if http.is_receiving:
            self.close()  # the rest of this request will never come
        else:
            http.shutdown()  # closes now, or after the running response

    def _flush(self) -> None:
        size = _BIO_READ
        while size == _BIO_READ:
            try:
                data = self._tls.bio_read(_BIO_READ)
            except SSL.WantReadError:
                return
            size = len(data)
            if not self._raw.is_closing():
                self._raw.write(data)

    def _start_timer(self, seconds: float, code: str) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._abort, code)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _abort(self, code: str, error: Exception | None = None) -> None:
        """Cut the connection: nothing that is buffered matters any more."""
        self._note(code, error)
        self._closing = True
        self._raw.abort()

    def _close_raw(self, code: str, error: Exception) -> None:
        """Close after TLS itself failed: send what is buffered (the alert), no close_notify."""
        self._note(code, error)
        self._closing = True
        self._start_timer(self._front.limits.close_seconds, "tls.close.timeout")
        self._raw.close()

    def _note(self, code: str, error: Exception | None = None) -> None:
        peer = self._raw.get_extra_info("peername")
        self._front.log("tls", code=code, peer=str(peer or "local"), reason=_reason(error))


def build_server(
    app: ASGIApp,
    *,
    context_factory: ContextFactory,
    limits: Limits = DEFAULT_LIMITS,
    log: Callable[..., None] = log_event,
    draining: Draining = lambda _connections: None,
) -> StoppableServer:
    """Return a server of `app` behind attested TLS; `run_server` or its own `serve` gives it sockets.

    `draining` is called when it stops. What an application finds in its scope's `state` besides
    `peer_chain` is `connections`, those that are open.
    """
    front = _Front(context_factory, limits, log)
    return _server(app, partial(_TlsConnection, front), limits, draining)


def build_plain_server(
    app: ASGIApp, *, limits: Limits = DEFAULT_LIMITS, draining: Draining = lambda _connections: None
) -> StoppableServer:
    """Return a server without TLS: the onboard listener, unix sockets. Nothing is in the `state` there."""
    return _server(app, partial(PlainHttpProtocol, limits=limits), limits, draining)


def run_server(server: StoppableServer, sockets: Sequence[socket.socket]) -> bool:
    """Run on the event loop that fits the sockets, until `server.should_exit` is set or a signal comes.

    Returns whether it was SIGTERM or SIGINT, when requests that were being answered are, or the time of one
    is over (`Limits.request_seconds`). The process goes on: it is the caller's part to end it.
    """
    with asyncio.Runner(loop_factory=loop_factory(sockets)) as runner:
        runner.run(server.serve(sockets=list(sockets)))
    return server.was_signalled


def loop_factory(sockets: Sequence[socket.socket]) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's factory, or asyncio's where a socket is AF_VSOCK, which uvloop does not know."""
    if any(sock.family == getattr(socket, "AF_VSOCK", None) for sock in sockets):
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - an enclave that listens on VSOCK does not load it

    return uvloop.new_event_loop


def _server(
    app: ASGIApp, protocol: Callable[..., asyncio.Protocol], limits: Limits, draining: Draining
) -> StoppableServer:
    config = uvicorn.Config(
        cast("Any", app),  # starlette's and uvicorn's names for one interface
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # the peer is who connected, whatever it says
        server_header=False,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=int(limits.request_seconds),
    )
    return StoppableServer(config, draining)


def _peer_chain(tls: SSL.Connection) -> list[bytes]:
    """Return the client's certificates as DER, leaf first; of more than `MAX_PEER_CHAIN`, one more."""
    leaf = tls.get_peer_certificate()
    if leaf is None:
        return []
    # On the server side OpenSSL's chain lacks the leaf.
    certificates = [leaf, *(tls.get_peer_cert_chain() or [])[:MAX_PEER_CHAIN]]
    return [crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in certificates]


def _reason(error: Exception | None) -> str:
    """Return what may be logged: OpenSSL's reason words or our code, never bytes of the peer."""
    if isinstance(error, DstackError):
        return error.code
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return ", ".join(entry[2] for entry in error.args[0])
    return type(error).__name__ if error else ""
