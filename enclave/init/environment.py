"""The app's encrypted environment: offered by the parent, opened with the app's key (spec deploy section 3).

The parent holds a ciphertext that only this app's `env_crypt_key` opens, so a changed secret needs no new
image. It is hostile input: bounded, and refused whole where it does not open or is not the signer's. Anybody
can encrypt to the key, so whoever must know that the variables are the deployer's names an `env_signer`.
"""

import socket
import time
from typing import Final

from enclave.tee.nitro import NitroTee
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES
from shared.errors import ProtocolError, UnavailableError

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 30.0
"""For all of it: 256 KiB from the same machine."""

_CHUNK: Final = 64 * 1024


def fetch_encrypted_env(tee: NitroTee, port: int, *, seconds: float = READ_SECONDS) -> bytes | None:
    """Return what the parent's vsock port sends until it closes; None where it sends nothing.

    Raises `ProtocolError("init.env.oversize")` above 256 KiB, `UnavailableError`: `init.env.timeout`,
    `init.env.broken`, `vsock.connect.*`.
    """
    deadline = time.monotonic() + seconds
    received = bytearray()
    with tee.connect_parent(port, CONNECT_SECONDS) as connection:
        while chunk := _receive(connection, deadline - time.monotonic()):
            received += chunk
            if len(received) > MAX_CIPHERTEXT_BYTES:
                raise ProtocolError(
                    "init.env.oversize",
                    f"the parent offers an environment of more than {MAX_CIPHERTEXT_BYTES} bytes",
                )
    return bytes(received) or None


def _receive(connection: socket.socket, left: float) -> bytes:
    late = UnavailableError("init.env.timeout", "the parent did not send the environment in time")
    if left <= 0:
        raise late
    try:
        connection.settimeout(left)
        return connection.recv(_CHUNK)
    except TimeoutError as error:
        raise late from error
    except OSError as error:
        raise UnavailableError(
            "init.env.broken", f"the parent broke off sending the environment: {error.strerror}"
        ) from error
