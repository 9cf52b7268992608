"""VSOCK behind one interface: the kernel's AF_VSOCK, and a directory of unix sockets that stands in for it.

Addresses are `vsock://CID:PORT` with both numbers decimal (spec deploy 7.1). In a Nitro Enclave the parent is
CID 3. Whatever arrives over VSOCK comes from the host side and is hostile input, the peer's CID included.
"""

import asyncio
import contextlib
import errno
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from shared.errors import ConfigError, UnavailableError

DEFAULT_BACKLOG = 128

_MAX_U32 = 0xFFFF_FFFF  # cids and ports are 32 bits; all ones is the wildcard
_ADDRESS = re.compile(r"vsock://(0|[1-9][0-9]{0,9}):([1-9][0-9]{0,9})")
_PEER_NAME = re.compile(r"([0-9]{1,10})_[0-9a-f]{16}\.peer")
_MAX_UNIX_PATH = 107  # sun_path less its terminating zero
_STAND_IN_PORTS = range(1024, 1 << 31)
_FULL_BACKLOG_PAUSE = 0.01  # a stand-in whose backlog is full fails at once, where VSOCK would wait


class VsockAddress(msgspec.Struct, frozen=True):
    """A peer: context id and port."""

    cid: int
    port: int

    def __str__(self) -> str:
        return f"vsock://{self.cid}:{self.port}"


def parse_address(text: str) -> VsockAddress:
    """Parse `vsock://3:3128`.

    Anything else, the wildcard values included, raises `ConfigError("vsock.address.malformed")`.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError("vsock.address.malformed", f"got {text[:80]!r}, expected vsock://CID:PORT")
    cid, port = int(match[1]), int(match[2])
    if cid >= _MAX_U32 or port >= _MAX_U32:
        raise ConfigError("vsock.address.malformed", f"cid and port of {text!r} must be below {_MAX_U32}")
    return VsockAddress(cid, port)


class VsockTransport(Protocol):
    """Stream sockets between an enclave and its parent.

    Failures are `UnavailableError`: `vsock.connect.refused`, `vsock.connect.timeout`, `vsock.connect.failed`,
    `vsock.listen.in_use`, `vsock.listen.failed`.
    """

    def connect(self, cid: int, port: int, timeout: float) -> socket.socket:
        """Return a socket connected to `cid:port`, its timeout set to `timeout` seconds."""
        ...

    def endpoint(self, cid: int, port: int) -> tuple[socket.socket, str | tuple[int, int]]:
        """Return an unconnected socket and the address to connect it to; for `connect_async`."""
        ...

    def listen(self, port: int, backlog: int = DEFAULT_BACKLOG) -> socket.socket:
        """Return a blocking listening socket; port 0 picks a free one."""
        ...

    def local_port(self, listener: socket.socket) -> int:
        """Return the port that a socket from `listen` is bound to."""
        ...

    def peer_cid(self, connection: socket.socket) -> int | None:
        """Return the peer's CID of an accepted connection, None where it shows none."""
        ...

    def close_listener(self, listener: socket.socket) -> None:
        """Close a socket from `listen` and free its port."""
        ...


class AfVsock:
    """The kernel's AF_VSOCK."""

    def connect(self, cid: int, port: int, timeout: float) -> socket.socket:
        """See `VsockTransport.connect`."""
        return _connect(self, cid, port, timeout)

    def endpoint(self, cid: int, port: int) -> tuple[socket.socket, str | tuple[int, int]]:
        """See `VsockTransport.endpoint`."""
        return socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (cid, port)

    def listen(self, port: int, backlog: int = DEFAULT_BACKLOG) -> socket.socket:
        """See `VsockTransport.listen`."""
        with _listening(f"vsock port {port}"):
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            try:
                sock.bind((socket.VMADDR_CID_ANY, port or socket.VMADDR_PORT_ANY))
                sock.listen(backlog)
            except BaseException:
                sock.close()
                raise
            return sock

    def local_port(self, listener: socket.socket) -> int:
        """See `VsockTransport.local_port`."""
        return int(listener.getsockname()[1])

    def peer_cid(self, connection: socket.socket) -> int | None:
        """See `VsockTransport.peer_cid`."""
        return int(connection.getpeername()[0])

    def close_listener(self, listener: socket.socket) -> None:
        """See `VsockTransport.close_listener`."""
        listener.close()


class UnixStandIn:
    """A directory of unix sockets in place of VSOCK, for development, the demo and tests.

    `cid` is the one that this process stands in for: `listen(port)` makes `<cid>_<port>.sock` (0600), and
    `connect(cid, port)` opens the peer's. The connecting side binds a name with its own CID, so `peer_cid`
    works here too. Whoever may write to the directory can claim any CID.
    """

    def __init__(self, directory: Path, cid: int) -> None:
        self._directory = directory
        self._cid = cid

    def connect(self, cid: int, port: int, timeout: float) -> socket.socket:
        """See `VsockTransport.connect`."""
        return _connect(self, cid, port, timeout)

    def endpoint(self, cid: int, port: int) -> tuple[socket.socket, str | tuple[int, int]]:
        """See `VsockTransport.endpoint`."""
        path = self._path(f"{cid}_{port}.sock")
        name = self._path(f"{self._cid}_{secrets.token_hex(8)}.peer")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(name)
            Path(name).unlink()  # the kernel keeps the name for getpeername
        except BaseException:
            sock.close()
            raise
        return sock, path

    def listen(self, port: int, backlog: int = DEFAULT_BACKLOG) -> socket.socket:
        """See `VsockTransport.listen`."""
        port = port or secrets.choice(_STAND_IN_PORTS)
        path = self._path(f"{self._cid}_{port}.sock")
        with _listening(f"vsock port {port} (stand-in)"):
            remove_stale(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                os.fchmod(sock.fileno(), 0o600)  # before bind: the file never exists with wider permissions
                sock.bind(path)
                sock.listen(backlog)
            except BaseException:
                sock.close()
                raise
            return sock

    def local_port(self, listener: socket.socket) -> int:
        """See `VsockTransport.local_port`."""
        return int(Path(listener.getsockname()).stem.partition("_")[2])

    def peer_cid(self, connection: socket.socket) -> int | None:
        """See `VsockTransport.peer_cid`."""
        name = connection.getpeername()
        match = _PEER_NAME.fullmatch(Path(name).name) if isinstance(name, str) else None
        return int(match[1]) if match else None

    def close_listener(self, listener: socket.socket) -> None:
        """See `VsockTransport.close_listener`."""
        path = Path(listener.getsockname())
        listener.close()
        path.unlink(missing_ok=True)

    def _path(self, name: str) -> str:
        path = str(self._directory / name)
        if len(os.fsencode(path)) > _MAX_UNIX_PATH:
            raise ConfigError(
                "vsock.directory.long", f"socket path {path!r} is longer than {_MAX_UNIX_PATH} bytes"
            )
        return path


async def connect_async(transport: VsockTransport, cid: int, port: int, seconds: float) -> socket.socket:
    """Connect without blocking the event loop; the socket is non-blocking. Errors as `VsockTransport`."""
    loop = asyncio.get_running_loop()
    with _connecting(f"vsock://{cid}:{port}"):
        sock, address = transport.endpoint(cid, port)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(seconds):
                if sock.family != socket.AF_UNIX:
                    await loop.sock_connect(sock, address)
                    return sock
                while not _connects_at_once(sock, address):  # noqa: ASYNC110 - nothing signals a free backlog
                    await asyncio.sleep(_FULL_BACKLOG_PAUSE)
        except BaseException:
            sock.close()
            raise
        return sock


def _connect(transport: VsockTransport, cid: int, port: int, timeout: float) -> socket.socket:
    with _connecting(f"vsock://{cid}:{port}"):
        sock, address = transport.endpoint(cid, port)
        try:
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock


def _connects_at_once(sock: socket.socket, address: str | tuple[int, int]) -> bool:
    try:
        sock.connect(address)
    except BlockingIOError:
        return False
    return True


def remove_stale(path: str) -> None:
    """Remove a socket that nothing accepts on; leave a live one, or another file, for bind to trip over."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except (FileNotFoundError, BlockingIOError):
            return  # nothing there, or alive with a full backlog


@contextlib.contextmanager
def _connecting(peer: str) -> Iterator[None]:
    try:
        yield
    except ConnectionRefusedError as error:
        raise UnavailableError("vsock.connect.refused", f"nothing listens at {peer}") from error
    except TimeoutError as error:
        raise UnavailableError("vsock.connect.timeout", f"{peer} did not answer in time") from error
    except OSError as error:
        code = "vsock.connect.refused" if _is_absent(error) else "vsock.connect.failed"
        raise UnavailableError(code, f"cannot connect to {peer}: {error.strerror}") from error


@contextlib.contextmanager
def _listening(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        code = "vsock.listen.in_use" if taken else "vsock.listen.failed"
        raise UnavailableError(code, f"cannot listen on {what}: {error.strerror}") from error


def _is_absent(error: OSError) -> bool:
    # ECONNRESET is what a vsock peer without a listener answers; ENOENT its stand-in's equal.
    return error.errno in {errno.ECONNRESET, errno.ENOENT}
