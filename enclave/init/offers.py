"""Bytes that the parent offers at a vsock port, which are hostile: bounded in size and time."""

import socket
import time
from typing import Final

from enclave.tee.nitro import NitroTee
from shared.errors import ProtocolError, UnavailableError

CONNECT_SECONDS: Final = 10.0
_CHUNK: Final = 64 * 1024


def read_offer(
    tee: NitroTee,
    port: int,
    *,
    what: str,
    limit: int,
    seconds: float,
    code: str,
    connect: float = CONNECT_SECONDS,
) -> bytes:
    """Return what the parent's vsock port sends until it closes; `what` names it, `code` begins each code.

    Raises `ProtocolError("{code}.oversize")` above `limit` bytes, `UnavailableError`: `{code}.timeout`,
    `{code}.broken`, `vsock.connect.*`.
    """
    deadline = time.monotonic() + seconds
    received = bytearray()
    with tee.connect_parent(port, connect) as connection:
        while chunk := _receive(connection, deadline - time.monotonic(), what, code):
            received += chunk
            if len(received) > limit:
                raise ProtocolError(
                    f"{code}.oversize", f"the parent offers {what} of more than {limit} bytes"
                )
    return bytes(received)


def _receive(connection: socket.socket, left: float, what: str, code: str) -> bytes:
    late = UnavailableError(f"{code}.timeout", f"the parent did not send {what} in time")
    if left <= 0:
        raise late
    try:
        connection.settimeout(left)
        return connection.recv(_CHUNK)
    except TimeoutError as error:
        raise late from error
    except OSError as error:
        raise UnavailableError(
            f"{code}.broken", f"the parent broke off sending {what}: {error.strerror}"
        ) from error
