"""TDX quotes by the host's quote generation service over vsock (spec attestation section 3.2)."""

import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from shared.errors import ProtocolError, UnavailableError

CONFIG_PATH = Path("/etc/tdx-attest.conf")
HOST_CID = 2
REPORT_LENGTH = 1024
# The whole answer: a quote of some 8 KiB and its header.
MAX_MESSAGE = 16384
MIN_QUOTE = 1020
# Making a quote takes the host a second; a minute means that it will not.
TIMEOUT = 60.0

_MAX_CONFIG = 64 * 1024
_PORT = re.compile(r"port\s*=\s*([0-9]{1,10})")
_HEADER = struct.Struct("<HHIII")  # major, minor, type, size, error code
_REQUEST, _RESPONSE = 0, 1
_SIZES = struct.Struct("<II")

Connect = Callable[[int, int, float], socket.socket]


class QgsQuotes:
    """Quotes from the service.

    `report` makes a TDREPORT over 64 bytes, `connect(cid, port, timeout)` a socket.

    `connect` raises `UnavailableError`, as `VsockTransport.connect` does.
    """

    def __init__(
        self, report: Callable[[bytes], bytes], connect: Connect, *, config: Path = CONFIG_PATH
    ) -> None:
        self._report = report
        self._connect = connect
        self._config = config

    def quote(self, report_data: bytes) -> bytes:
        """Return the quote over 64 bytes.

        Raises `UnavailableError`: `tdx_device.qgs.absent` when no port is configured, `tdx_device.qgs.io`,
        `tdx_device.qgs.refused` for an error code of the service; `ProtocolError`:
        `tdx_device.qgs.malformed`; what `connect` and `report` raise.
        """
        port = qgs_port(self._config)
        report = self._report(report_data)
        connection = self._connect(HOST_CID, port, TIMEOUT)
        try:
            with connection:
                connection.sendall(encode_request(report))
                length = int.from_bytes(_receive(connection, 4), "big")
                if length > MAX_MESSAGE:
                    raise _malformed(f"announces {length} bytes, at most {MAX_MESSAGE} are read")
                return decode_response(_receive(connection, length))
        except OSError as error:
            raise UnavailableError("tdx_device.qgs.io", f"quote service failed: {error}") from error


def qgs_port(config: Path) -> int:
    """Return the `port = N` of Intel's configuration file."""
    try:
        with config.open("rb") as file:
            text = file.read(_MAX_CONFIG).decode("utf-8", "replace")
    except OSError as error:
        raise UnavailableError(
            "tdx_device.qgs.absent", f"no quote service is configured: {config}: {error.strerror}"
        ) from error
    for line in text.splitlines():
        statement = line.partition("#")[0].strip()
        if match := _PORT.fullmatch(statement):
            return int(match[1])
    # As Intel's package installs the file, with its line commented out.
    raise UnavailableError("tdx_device.qgs.absent", f"no quote service is configured: {config} has no port")


def encode_request(report: bytes) -> bytes:
    """Return the framed request for a quote over a TDREPORT (1024 bytes)."""
    body = _SIZES.pack(len(report), 0) + report
    message = _HEADER.pack(1, 0, _REQUEST, _HEADER.size + len(body), 0) + body
    return len(message).to_bytes(4, "big") + message


def decode_response(message: bytes) -> bytes:
    """Return the quote of a response, without its frame."""
    fixed = _HEADER.size + _SIZES.size
    if len(message) < fixed:
        raise _malformed(f"answered {len(message)} bytes, expected at least {fixed}")
    major, _minor, kind, size, error_code = _HEADER.unpack_from(message)
    if (major, kind, size) != (1, _RESPONSE, len(message)):
        raise _malformed(f"answered version {major}, type {kind}, size {size} in {len(message)} bytes")
    if error_code:
        raise UnavailableError("tdx_device.qgs.refused", f"quote service answered with error {error_code:#x}")
    id_length, quote_length = _SIZES.unpack_from(message, _HEADER.size)
    if fixed + id_length + quote_length != len(message) or quote_length < MIN_QUOTE:
        raise _malformed(f"answered a quote of {quote_length} bytes in a message of {len(message)}")
    return message[fixed + id_length :]


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        if not (piece := connection.recv(length - len(received))):
            raise UnavailableError(
                "tdx_device.qgs.io", f"quote service closed after {len(received)} of {length} bytes"
            )
        received += piece
    return received


def _malformed(what: str) -> ProtocolError:
    return ProtocolError("tdx_device.qgs.malformed", f"quote service {what}")
