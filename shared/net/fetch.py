"""A bounded HTTP/1.1 client over a dialer: one deadline, one size limit, no redirects, no environment.

The deadline covers connecting, TLS, headers and body together, also against a peer that sends one byte at a
time. TLS is checked against the roots that were given; the system's roots are used only when none were.
Parsing is the standard library's, because importing it costs a third of what urllib3 costs a cold function.
"""

import base64
import contextlib
import http.client
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast
from urllib.parse import SplitResult, urlsplit

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.dialer import Dialer
from shared.net.response import Response, StrictHttpResponse, copy_body, headers_of, read_response

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

DEFAULT_TIMEOUT = 10.0
# A JSON-RPC batch of proofs and two codes is below 300 KiB on the largest chain.
DEFAULT_MAX_BYTES = 2 * 1024 * 1024
# Connections kept open per origin; a quorum asks each of its origins from one thread.
_MAX_IDLE = 2
_CHUNK = 64 * 1024
_PORTS = {"http": 80, "https": 443}

_Origin = tuple[str, str, int]
_Request = tuple[str, str, bytes | None, dict[str, str]]


class HttpClient:
    """Requests to any origin, over connections that `dialer` opens.

    `ca_roots` is PEM text of the only roots that TLS may chain to; None takes the system's. `timeout` is in
    seconds for a whole request, `max_bytes` bounds a body. `authenticate` False takes any certificate: only
    for answers that prove themselves, to questions that anybody may read. Safe to share between threads.
    Raises `ConfigError("net.roots.invalid")`.
    """

    def __init__(
        self,
        dialer: Dialer,
        ca_roots: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_bytes: int = DEFAULT_MAX_BYTES,
        *,
        authenticate: bool = True,
    ) -> None:
        self._dialer = dialer
        self._authenticate = authenticate
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._idle: dict[_Origin, list[_Connection]] = {}
        self._lock = threading.Lock()
        # the system's roots take long to read, so they are read when they are needed
        self._tls = None if ca_roots is None else _tls_context(ca_roots, authenticate=authenticate)
        # Idle sockets are this object's own business: whoever drops it need not know of them. A `__del__`
        # may come too late where both are part of one cycle, whose members are finalized in any order.
        weakref.finalize(self, _close_idle, self._idle, self._lock)

    def request(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float | None = None,
        max_bytes: int | None = None,
    ) -> Response:
        """Send one request and read its whole answer; a redirect is an answer like any other.

        `timeout` and `max_bytes` take the place of the client's own for this request. A request on a kept
        connection that the peer had just closed is sent once more, on a new one: send only what may be done
        twice.

        Raises `UnavailableError`: `net.timeout`, `net.unreachable`, `net.tls.refused`
        and what the dialer raises; `ProtocolError`: `net.response.malformed`, `net.response.truncated`,
        `net.response.oversize`; `ConfigError("net.url.invalid")`.
        """
        timeout = self._timeout if timeout is None else timeout
        max_bytes = self._max_bytes if max_bytes is None else max_bytes
        deadline = time.monotonic() + timeout
        parts, origin = _split(url)
        request = (method, _target(parts), body, {**_authorization(parts), **(headers or {})})
        try:
            kept = self._take(origin)
            if kept is not None:
                with contextlib.suppress(ConnectionError):
                    return self._exchange(origin, kept, deadline, request, max_bytes)
            return self._exchange(origin, self._open(origin, deadline), deadline, request, max_bytes)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _mapped(error, origin, timeout) from error

    def download(
        self,
        url: str,
        sink: Callable[[bytes], object],
        *,
        max_bytes: int,
        timeout: float,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """GET a body that is too large to hold, piece by piece into `sink`; the returned `body` is empty.

        Of an answer other than 200 the body is not read. `sink` has had any part of the body when this
        raises, which is what `request` raises; it must not raise `OSError` or `ValueError` itself.
        """
        deadline = time.monotonic() + timeout
        parts, origin = _split(url)
        try:
            # a connection of its own: what a sink has taken cannot be sent a second time
            with contextlib.closing(self._open(origin, deadline)) as connection:
                connection.socket.deadline = deadline
                connection.request(
                    "GET", _target(parts), headers={**_authorization(parts), **(headers or {})}
                )
                with connection.getresponse() as answer:
                    if answer.status == 200:
                        copy_body(answer, sink, max_bytes)
                    return Response(answer.status, headers_of(answer), b"")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _mapped(error, origin, timeout) from error

    def _exchange(
        self,
        origin: _Origin,
        connection: "_Connection",
        deadline: float,
        request: _Request,
        max_bytes: int,
    ) -> Response:
        method, target, body, headers = request
        try:
            connection.socket.deadline = deadline
            connection.request(method, target, body=body, headers=headers)
            with connection.getresponse() as answer:
                response = read_response(answer, max_bytes)
        except BaseException:
            connection.close()
            raise
        self._give_back(origin, connection)
        return response

    def close(self) -> None:
        """Close the idle connections."""
        _close_idle(self._idle, self._lock)

    def _open(self, origin: _Origin, deadline: float) -> "_Connection":
        scheme, host, port = origin
        dialed = self._dialer.dial(host, port, _left(deadline))
        plain = _TimedSocket(dialed.family, dialed.type, dialed.proto, fileno=dialed.detach())
        plain.deadline = deadline
        if scheme == "http":
            return _Connection(origin, plain)
        try:
            # one handshake is one operation to the ssl module: this time limit is its total
            plain.settimeout(_left(deadline))
            self._tls = self._tls or _tls_context(None, authenticate=self._authenticate)
            wrapped = self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
        return _Connection(origin, cast("_TimedTlsSocket", wrapped))

    def _take(self, origin: _Origin) -> "_Connection | None":
        with self._lock:
            idle = self._idle.get(origin, [])
            while idle:
                connection = idle.pop()
                if connection.is_quiet():
                    return connection
                connection.close()
        return None

    def _give_back(self, origin: _Origin, connection: "_Connection") -> None:
        if connection.sock is None:  # the peer asked for it to be closed
            return
        with self._lock:
            idle = self._idle.setdefault(origin, [])
            if len(idle) < _MAX_IDLE:
                idle.append(connection)
                return
        connection.close()


class _TimedSocket(socket.socket):
    """A socket whose every operation ends at one deadline (monotonic seconds), however many there are."""

    deadline: float

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(_left(self.deadline))
        # "all of it" is 0 to plain sockets and None to TLS ones
        return super().recv_into(buffer) if nbytes is None else super().recv_into(buffer, nbytes, flags)

    def send(self, data: "ReadableBuffer", flags: int = 0) -> int:
        self.settimeout(_left(self.deadline))
        return super().send(data, flags)

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        self.settimeout(_left(self.deadline))
        super().sendall(data, flags)


class _TimedTlsSocket(_TimedSocket, ssl.SSLSocket):
    """The same over TLS."""


class _Connection(http.client.HTTPConnection):
    """The standard library's HTTP/1.1 over a socket that is connected already."""

    response_class = StrictHttpResponse

    def __init__(self, origin: _Origin, sock: _TimedSocket) -> None:
        scheme, host, port = origin
        super().__init__(host, port)
        self.default_port = _PORTS[scheme]  # what the Host header leaves out
        self.auto_open = 0
        self.sock = sock
        self.socket = sock

    def is_quiet(self) -> bool:
        """Whether an idle connection is still open: the peer neither closed it nor sent anything."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)


def _close_idle(kept: "dict[_Origin, list[_Connection]]", lock: threading.Lock) -> None:
    with lock:
        idle = [connection for connections in kept.values() for connection in connections]
        kept.clear()
    for connection in idle:
        connection.close()


def _split(url: str) -> tuple[SplitResult, _Origin]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError("net.url.invalid", f"the url is malformed: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ConfigError("net.url.invalid", f"got a url of scheme {parts.scheme!r}, expected http or https")
    return parts, (parts.scheme, parts.hostname, port or _PORTS[parts.scheme])


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _authorization(parts: SplitResult) -> dict[str, str]:
    if parts.username is None:
        return {}
    credentials = f"{parts.username}:{parts.password or ''}".encode()
    return {"Authorization": f"Basic {base64.b64encode(credentials).decode()}"}


def _tls_context(ca_roots: bytes | None, *, authenticate: bool) -> ssl.SSLContext:
    # not create_default_context: that one lets the environment name a file for the session keys
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TimedTlsSocket
    if not authenticate:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if ca_roots is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cadata=ca_roots.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError("net.roots.invalid", f"the ca roots are not pem certificates: {error}") from error
    return context


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _mapped(error: Exception, origin: _Origin, timeout: float) -> DstackError:
    scheme, host, port = origin
    peer = f"{scheme}://{host}:{port}"
    if isinstance(error, TimeoutError):
        return UnavailableError("net.timeout", f"{peer} did not answer within {timeout:g} seconds")
    if isinstance(error, ssl.SSLError):
        return UnavailableError("net.tls.refused", f"tls with {peer} failed: {error.reason or error}")
    if isinstance(error, http.client.IncompleteRead):
        return ProtocolError("net.response.truncated", f"the answer of {peer} ended before its declared end")
    if isinstance(error, OSError):
        return UnavailableError("net.unreachable", f"cannot talk to {peer}: {error}")
    return ProtocolError("net.response.malformed", f"{peer} did not answer in http/1.1: {error!r}"[:300])
