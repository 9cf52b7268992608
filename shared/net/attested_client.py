"""Blocking HTTPS client whose peer is judged by its certificate's evidence, not by a trust store.

The order is the point: dial, TLS handshake (which proves that the peer holds its certificate's key), then
`check_peer` on the leaf, then the first byte of ours. A peer that `check_peer` refuses gets no request, and
under TLS 1.3 not even our own certificate. Keys and certificates stay in memory (spec kms 4.7, 8.2).
"""

import contextlib
import http.client
import io
import re
import time
from collections.abc import Callable, Mapping, Sequence
from socket import socket
from types import TracebackType
from typing import Self, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL, crypto

from shared.errors import ConfigError, ProtocolError, UnavailableError
from shared.net.dialer import Dialer
from shared.net.response import Response, StrictHttpResponse, read_response
from shared.ratls.tls import client_context

MAX_BODY_BYTES = 10 * 1024 * 1024
"""Of a response, unless the caller says otherwise: the protocol's own limit (spec kms 1.2)."""

_WRITE_SLICE = 64 * 1024  # a memory BIO buffers what it is given
_READ_SIZE = 64 * 1024
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(r"/[!-~]*")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
_IPV4 = re.compile(r"[0-9.]+")
_OUR_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})


class AttestedConnection:
    """One TLS connection to a checked peer; requests follow each other on it. Use as a context manager."""

    def __init__(self, channel: "_Channel", authority: str, timeout: float) -> None:
        """Use `connect`."""
        self._channel = channel
        self._authority = authority
        self._timeout = timeout
        self.peer_chain = channel.peer_chain
        """The peer's certificates as DER, leaf first."""

    @classmethod
    def connect(
        cls,
        dialer: Dialer,
        host: str,
        port: int,
        *,
        check_peer: Callable[[bytes], None],
        timeout: float,
        client_key: EllipticCurvePrivateKey | None = None,
        client_chain: Sequence[x509.Certificate] | None = None,
    ) -> Self:
        """Dial, shake hands and check the peer, all within `timeout` seconds.

        `check_peer(leaf_der)` decides who the peer is and raises to refuse; its error closes the connection
        and passes through. Raises what `Dialer.dial` raises, `UnavailableError("net.timeout")`,
        `UnavailableError("net.unreachable")`, `ProtocolError("net.tls.failed")`,
        `ProtocolError("net.tls.truncated")`.
        """
        return cls.connect_by_chain(
            dialer,
            host,
            port,
            check_chain=lambda chain: check_peer(chain[0]),
            timeout=timeout,
            client_key=client_key,
            client_chain=client_chain,
        )

    @classmethod
    def connect_by_chain(
        cls,
        dialer: Dialer,
        host: str,
        port: int,
        *,
        check_chain: Callable[[tuple[bytes, ...]], None],
        timeout: float,
        client_key: EllipticCurvePrivateKey | None = None,
        client_chain: Sequence[x509.Certificate] | None = None,
    ) -> Self:
        """Do as `connect` for a peer that is known by its issuers: all its certificates, DER, leaf first."""
        deadline = time.monotonic() + timeout
        context = client_context(key=client_key, chain=client_chain or ())
        sock = dialer.dial(host, port, timeout)
        try:
            tls = SSL.Connection(context, None)
            tls.set_connect_state()
            if not _is_address(host):
                tls.set_tlsext_host_name(host.encode("ascii"))
            channel = _Channel(sock, tls, deadline)
            channel.shake_hands(check_chain)
        except BaseException:
            sock.close()
            raise
        return cls(channel, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        timeout: float | None = None,
    ) -> Response:
        """Send one request and read its whole response within `timeout` seconds (default: that of `connect`).

        A slow drip does not extend the time. Any error closes the connection. Raises `UnavailableError`:
        `net.timeout`, `net.unreachable`, `net.closed`; `ProtocolError`: `net.response.malformed`,
        `net.response.oversize`, `net.response.truncated`, `net.tls.failed`, `net.tls.truncated`;
        `ConfigError("net.request.invalid")`.
        """
        head = self._head(method, path, len(body), headers or {})
        channel = self._channel
        if channel.is_closed:
            raise UnavailableError("net.closed", "the connection is closed")
        channel.deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        try:
            channel.send(head + body)
            response, last = _read_response(channel, method, max_bytes)
        except BaseException:
            channel.close()
            raise
        if last:
            channel.close()
        return response

    def close(self) -> None:
        """Close, telling the peer where that takes no waiting."""
        self._channel.close(notify=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _head(self, method: str, path: str, body_length: int, headers: Mapping[str, str]) -> bytes:
        if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(path):
            raise ConfigError("net.request.invalid", f"got method {method[:20]!r} and path {path[:80]!r}")
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._authority}", f"Content-Length: {body_length}"]
        for name, value in headers.items():
            if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value) or name.lower() in _OUR_HEADERS:
                raise ConfigError("net.request.invalid", f"header {name[:40]!r} cannot be sent")
            lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


class _Channel:
    """TLS over a memory BIO, so that every wait is ours to bound by `deadline`."""

    def __init__(self, sock: socket, tls: SSL.Connection, deadline: float) -> None:
        self._sock = sock
        self._tls = tls
        self.deadline = deadline
        self.is_closed = False
        self.peer_chain: tuple[bytes, ...] = ()

    def shake_hands(self, check_chain: Callable[[tuple[bytes, ...]], None]) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                self._flush()
                self._fill()
            except SSL.Error as error:
                with contextlib.suppress(UnavailableError):
                    self._flush()  # the alert that tells the peer why
                raise _tls_failed(error) from error
            else:
                break
        # Under TLS 1.3 our certificate and Finished are still in the BIO here, and leave it with the flush.
        self.peer_chain = _peer_chain(self._tls)
        check_chain(self.peer_chain)
        self._flush()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(view), _WRITE_SLICE):
            try:
                self._tls.sendall(view[start : start + _WRITE_SLICE])
            except SSL.Error as error:
                raise _tls_failed(error) from error
            self._flush()

    def receive(self, size: int) -> bytes:
        """Return up to `size` bytes, none after the peer's close_notify."""
        while True:
            try:
                return self._tls.recv(size)
            except SSL.WantReadError:
                self._flush()
                self._fill()
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise _tls_failed(error) from error

    def close(self, *, notify: bool = False) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        with self._sock:
            if notify:
                with contextlib.suppress(SSL.Error, OSError):
                    self._tls.shutdown()
                    self._sock.setblocking(False)
                    self._sock.send(self._tls.bio_read(_READ_SIZE))

    def _flush(self) -> None:
        while True:
            try:
                data = self._tls.bio_read(_READ_SIZE)
            except SSL.WantReadError:
                return
            try:
                self._sock.settimeout(self._left())
                self._sock.sendall(data)
            except OSError as error:
                raise _unavailable(error) from error

    def _fill(self) -> None:
        try:
            self._sock.settimeout(self._left())
            data = self._sock.recv(_READ_SIZE)
        except OSError as error:
            raise _unavailable(error) from error
        if not data:
            raise ProtocolError("net.tls.truncated", "the peer closed without ending tls")
        self._tls.bio_write(data)

    def _left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline passed")
        return left


class _Reader(io.RawIOBase):
    """What `http.client` reads a response from, through the buffer that `makefile` puts around it."""

    def __init__(self, channel: _Channel) -> None:
        super().__init__()
        self._channel = channel

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # the stubs say Buffer
        data = self._channel.receive(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _READ_SIZE)


def _read_response(channel: _Channel, method: str, max_bytes: int) -> tuple[Response, bool]:
    """Return the response, and whether it is the connection's last."""
    answer = StrictHttpResponse(cast("socket", _Reader(channel)), method=method)
    with contextlib.closing(answer):
        try:
            answer.begin()
            if answer.status < 200:
                raise ProtocolError("net.response.malformed", f"got status {answer.status}")
            last = answer.will_close
            return read_response(answer, max_bytes), last
        except (http.client.HTTPException, ValueError) as error:
            raise ProtocolError(
                "net.response.malformed", f"the answer is not http/1 ({type(error).__name__})"
            ) from error


def _peer_chain(tls: SSL.Connection) -> tuple[bytes, ...]:
    chain = tls.get_peer_cert_chain()
    if not chain:
        raise ProtocolError("net.tls.failed", "the peer sent no certificate")
    return tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in chain)


def _tls_failed(error: SSL.Error) -> ProtocolError:
    queue = error.args[0] if error.args and isinstance(error.args[0], list) else []
    reasons = ", ".join(entry[2] for entry in queue) or type(error).__name__
    return ProtocolError("net.tls.failed", f"tls failed: {reasons}")


def _unavailable(error: OSError) -> UnavailableError:
    if isinstance(error, TimeoutError):
        return UnavailableError("net.timeout", "the peer did not answer in time")
    return UnavailableError("net.unreachable", f"the connection broke: {error.strerror or error}")


def _is_address(host: str) -> bool:
    return ":" in host or _IPV4.fullmatch(host) is not None
