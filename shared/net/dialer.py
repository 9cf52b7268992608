"""How a client gets a TCP byte stream to `host:port`: directly, or through an enclave's way out.

An enclave has no network of its own. It asks the parent's forwarder with HTTP CONNECT over VSOCK (spec deploy
5B.5, kms 8.2); the parent resolves the name and is hostile, so what it answers is bounded and parsed
strictly, and TLS above must not rely on it.
"""

import re
import socket
import time
from collections.abc import Callable
from typing import Protocol

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError

MAX_REPLY_BYTES = 8192
"""Of the proxy's answer to CONNECT, body of a refusal excluded; ours is under 300."""

_HOST = re.compile(r"[0-9A-Za-z._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [\x20-\x7e]*)?")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*)")
_REASON = re.compile(r"[a-z0-9_.]{1,64}")
_DENIED = frozenset({400, 403, 405, 407})
_TIMED_OUT = frozenset({408, 504})


class Dialer(Protocol):
    """A way to open a connection."""

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a socket connected to `host:port` within `timeout` seconds, its timeout still set.

        Raises `UnavailableError`: `net.unreachable`, `net.timeout`, `net.proxy.denied`; `ProtocolError`:
        `net.proxy.malformed`; `ConfigError("net.target.invalid")`.
        """
        ...


class DirectDialer:
    """A plain TCP connection. Name resolution is the system's and has the system's time limit."""

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """See `Dialer.dial`."""
        _check_target(host, port)
        deadline = time.monotonic() + timeout
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnavailableError("net.unreachable", f"cannot resolve {host}") from error
        failure = OSError("no address")
        for index, (family, kind, protocol, _, address) in enumerate(found):
            share = (deadline - time.monotonic()) / (len(found) - index)
            if share <= 0:
                failure = TimeoutError("no time left")
                break
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(share)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                return sock
        raise _unavailable(failure, f"{host}:{port}") from failure


class ConnectDialer:
    """CONNECT through a proxy that `open_proxy(timeout)` opens a socket to.

    The enclave passes `lambda timeout: transport.connect(3, 3128, timeout)`, so nothing here knows VSOCK;
    errors that `open_proxy` raises pass through.
    """

    def __init__(self, open_proxy: Callable[[float], socket.socket]) -> None:
        self._open_proxy = open_proxy

    def dial(self, host: str, port: int, timeout: float) -> socket.socket:
        """See `Dialer.dial`."""
        _check_target(host, port)
        deadline = time.monotonic() + timeout
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        sock = self._open_proxy(timeout)
        try:
            sock.settimeout(_left(deadline))
            sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
            _check_reply(_read_head(sock, deadline), authority)
            sock.settimeout(timeout)
        except OSError as error:
            sock.close()
            raise _unavailable(error, f"{authority} through the proxy") from error
        except BaseException:
            sock.close()
            raise
        return sock


def _check_target(host: str, port: int) -> None:
    # Also what keeps a line break or a space out of the CONNECT line.
    if not _HOST.fullmatch(host) or not 1 <= port <= 65535:
        raise ConfigError("net.target.invalid", f"got {host[:80]!r} port {port}, expected a host and a port")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("deadline passed")
    return left


def _unavailable(error: OSError, what: str) -> UnavailableError:
    if isinstance(error, TimeoutError):
        return UnavailableError("net.timeout", f"{what} did not answer in time")
    return UnavailableError("net.unreachable", f"cannot reach {what}: {error.strerror or error}")


def _read_head(sock: socket.socket, deadline: float) -> bytes:
    """Read the proxy's answer up to its empty line, however slowly or quickly it comes."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) >= MAX_REPLY_BYTES:
            raise ProtocolError(
                "net.proxy.malformed", f"the proxy's answer is longer than {MAX_REPLY_BYTES} bytes"
            )
        sock.settimeout(_left(deadline))
        chunk = sock.recv(MAX_REPLY_BYTES - len(data))
        if not chunk:
            raise ProtocolError("net.proxy.malformed", "the proxy closed before it answered")
        data += chunk
    return data


def _check_reply(data: bytes, authority: str) -> None:
    head, _, early = data.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(status_line)
    headers = [_HEADER_LINE.fullmatch(line) for line in lines]
    if match is None or None in headers:
        raise ProtocolError("net.proxy.malformed", "the proxy's answer is not http/1")
    status = int(match[1])
    if status == 200:
        if early:  # in TLS and HTTP the client speaks first: nobody but the proxy can have sent this
            raise ProtocolError("net.proxy.malformed", f"the proxy sent {len(early)} bytes of its own")
        return
    reasons = [found[2].decode() for found in headers if found and found[1].lower() == b"x-dstack-reason"]
    reason = reasons[0] if reasons and _REASON.fullmatch(reasons[0]) else "no reason given"
    raise _refused(status, f"the proxy answered {status} for {authority}: {reason}")


def _refused(status: int, sentence: str) -> DstackError:
    if status in _DENIED:
        return UnavailableError("net.proxy.denied", sentence)
    if status in _TIMED_OUT:
        return UnavailableError("net.timeout", sentence)
    if status >= 500:
        return UnavailableError("net.unreachable", sentence)
    return ProtocolError("net.proxy.malformed", sentence)
