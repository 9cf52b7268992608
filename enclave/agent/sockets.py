"""Where the agent listens: sockets that systemd hands over, unix sockets, TCP, vsock."""

import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from enclave.agent.config import VSOCK_PREFIX, Listener
from enclave.platform import Platform
from enclave.vsock.transport import remove_stale
from shared.errors import ConfigError, UnavailableError

FIRST_FD: Final = 3
"""The first descriptor that systemd passes."""

BACKLOG: Final = 4096
"""A unix socket whose backlog is full refuses at once, and a thousand clients may come in one instant."""

SOCKET_MODE: Final = 0o777
"""As upstream's unit has it: containers reach the socket by their mount, whatever user they run as."""

_MAX_ACTIVATED: Final = 2
_MAX_PATH: Final = 107  # bytes of a unix socket's path


def activated(environment: MutableMapping[str, str], first: int = FIRST_FD) -> list[socket.socket]:
    """Return the sockets that systemd opened for this process, in the unit's order, and forget the variables.

    Raises `ConfigError("agent.activation")` for what is no set of stream sockets.
    """
    passed, pid = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not passed:
        return []
    count = int(passed) if passed.isdecimal() and passed.isascii() else 0
    if not 0 < count <= _MAX_ACTIVATED:
        raise ConfigError(
            "agent.activation",
            f"systemd passes {passed[:16]!r} sockets, expected that of dstack, and that of tappd after it",
        )
    found = []
    for descriptor in range(first, first + count):
        try:
            os.set_inheritable(descriptor, False)
            one = socket.socket(fileno=descriptor)
        except OSError as error:
            raise ConfigError(
                "agent.activation", f"descriptor {descriptor} is no socket: {error.strerror}"
            ) from error
        if one.type != socket.SOCK_STREAM:
            one.close()
            raise ConfigError("agent.activation", f"descriptor {descriptor} is no stream socket")
        found.append(one)
    return found


def listen_to_host(platform: Platform, listener: Listener) -> socket.socket | None:
    """Listen where the host asks: None where a `vsock:` address is configured and the guest has no such way.

    Raises as `listen`.
    """
    if listener.address.startswith(VSOCK_PREFIX):
        return platform.tee.listen_to_host(listener.port)
    return listen(platform, listener)


def listen(platform: Platform, listener: Listener) -> socket.socket:
    """Listen where a service is configured to be: on a path below the guest's root, or as the guest does.

    Raises `ConfigError("agent.listener")`, `UnavailableError`: `agent.listen`, and the guest's own.
    """
    path = listener.unix_path()
    if path is None and not listener.address.startswith(VSOCK_PREFIX):
        return platform.tee.listen(listener.address, listener.port)
    if path is None or not path.startswith("/"):
        raise ConfigError("agent.listener", f"got {listener.address!r}, expected unix: and an absolute path")
    return listen_unix(platform.writable_path(path))


def listen_unix(path: Path) -> socket.socket:
    """Listen on a unix socket that everybody may connect to; one that nobody accepts on is replaced.

    Raises `UnavailableError("agent.listen")`.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with short_path(path) as name:
            remove_stale(name)
            made.bind(name)
        path.chmod(SOCKET_MODE)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UnavailableError("agent.listen", f"cannot listen on {path}: {error.strerror}") from error
    return made


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a name for a socket's path that bind and connect take, however long it is.

    That of a simulated guest can be beyond what they do.
    """
    if len(os.fsencode(path)) <= _MAX_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def tcp_address(listener: socket.socket) -> tuple[str, int] | None:
    """Return where this machine reaches a TCP listener; None for another kind."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


def notify_address(environment: Mapping[str, str]) -> str | None:
    """Return the address of systemd's notification socket; None where nobody waits for notifications."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return None
    return "\0" + address[1:] if address.startswith("@") else address
