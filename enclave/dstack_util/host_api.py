"""HostApi: what a guest asks and tells the machine's host (spec deploy section 7).

POST `<url>/<Method>?json`. The url is `host_api_url` of `.sys-config.json`, the host's own word:
`vsock://2:10000/api`, `http://127.0.0.1:8000/api`, or `unix:` and a socket's absolute path, whose methods are
at its root. Its answers are hostile input, bounded in size and in time. Clouds have no such host.
"""

import socket
import time
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from enclave.devices.detect import detect_platform
from enclave.dstack_util.host_notice import MAX_PAYLOAD, Host, NoHost
from enclave.log import log_event
from enclave.serving.http_response import HttpResponse
from enclave.vsock.transport import AfVsock, VsockTransport, parse_address
from shared.boot_info import SEV_SNP, TDX
from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.rpc import guest_api_pb2 as pb
from shared.rpc.codec import from_json, to_json

HOST_SECONDS: Final = 30.0
"""From the connection to the end of the answer."""

MAX_ANSWER: Final = 64 * 1024
"""A host's name and version, or its complaint."""

_READ: Final = 16 * 1024
_SHOWN: Final = 200
_HTTP_PORT: Final = 80


class HostAddress(NamedTuple):
    """Where a host is: `peer` is a vsock address as text, a path, or a name; `base` a path or empty."""

    scheme: str
    peer: str
    port: int
    base: str


def parse_host_url(text: str) -> HostAddress:
    """Parse `host_api_url`. Raises `ConfigError("host_api.url")`."""
    scheme, _, rest = text.partition(":")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise _bad_url(text)
    if scheme == "unix" and rest.startswith("/"):
        return HostAddress(scheme, rest, 0, "")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _bad_url(text) from error
    if parts.username is not None or parts.query or parts.fragment or not parts.hostname:
        raise _bad_url(text)
    base = parts.path.rstrip("/")
    if scheme == "http":
        return HostAddress(scheme, parts.hostname, port or _HTTP_PORT, base)
    if scheme == "vsock":
        try:
            address = parse_address(f"vsock://{parts.netloc}")
        except ConfigError as error:
            raise _bad_url(text) from error
        return HostAddress(scheme, str(address), address.port, base)
    raise _bad_url(text)


class HostApi:
    """One host. Methods raise `UnavailableError` and `ProtocolError`, codes `host_api.*` and `vsock.*`.

    `seconds` bounds one call. Methods block.
    """

    def __init__(self, url: str, *, vsock: VsockTransport, seconds: float = HOST_SECONDS) -> None:
        self._address = parse_host_url(url)
        self._vsock = vsock
        self._seconds = seconds

    def info(self) -> pb.HostInfo:
        """Ask who the host is: its own words."""
        answer = self._call("Info", Empty())
        return from_json(pb.HostInfo, answer)

    def notify(self, event: str, payload: str) -> None:
        """Tell one event. Raises `ProtocolError("host_api.payload")` for one that a host would drop."""
        payload = payload.encode(errors="replace").decode()  # a lone surrogate has no place in JSON
        size = len(payload.encode())
        if size > MAX_PAYLOAD:
            raise ProtocolError(
                "host_api.payload", f"the payload of {event} has {size} bytes, a host takes {MAX_PAYLOAD}"
            )
        self._call("Notify", pb.Notification(event=event, payload=payload))

    def _call(self, method: str, message: Message) -> bytes:
        deadline = time.monotonic() + self._seconds
        body = to_json(message)
        head = (
            f"POST {self._address.base}/{method}?json HTTP/1.1\r\nhost: dstack-host\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        response = HttpResponse("host_api")
        answer = bytearray()
        try:
            with self._connect() as peer:
                peer.settimeout(_left(deadline))
                peer.sendall(head.encode("ascii") + body)
                while not response.complete:
                    peer.settimeout(_left(deadline))
                    data = peer.recv(_READ)
                    if not data:
                        response.ended()
                        break
                    answer += response.feed(data)
                    if len(answer) > MAX_ANSWER:
                        raise ProtocolError("host_api.size", f"the host answers more than {MAX_ANSWER} bytes")
        except TimeoutError as error:
            raise UnavailableError(
                "host_api.timeout", f"the host did not answer {method} within {self._seconds:g} seconds"
            ) from error
        except OSError as error:
            raise UnavailableError(
                "host_api.unreachable", f"the host cannot be asked for {method}: {error.strerror}"
            ) from error
        if response.status != 200:
            said = bytes(answer[:_SHOWN]).decode("ascii", "replace")
            raise UnavailableError(
                "host_api.status", f"the host answers {method} with {response.status}: {said!a}"
            )
        return bytes(answer)

    def _connect(self) -> socket.socket:
        scheme, peer, port, _ = self._address
        if scheme == "vsock":
            address = parse_address(peer)
            return self._vsock.connect(address.cid, address.port, self._seconds)
        if scheme == "http":
            return socket.create_connection((peer, port), self._seconds)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.settimeout(self._seconds)
            made.connect(peer)
        except BaseException:
            made.close()
            raise
        return made


class TellingHost:
    """A host that is told, and whose failures are logged alone."""

    def __init__(self, api: HostApi) -> None:
        self._api = api

    def notify(self, event: str, payload: str) -> None:
        """See `Host.notify`."""
        try:
            self._api.notify(event, payload)
        except DstackError as error:
            log_event("host.notice.failed", notice=event, code=error.code, message=error.message)


def host_api_of(tee_variant: str, url: str, vsock: VsockTransport | None) -> HostApi | None:
    """Return the host of a machine of one's own; None on the clouds, and without a url.

    Raises `ConfigError("host_api.url")`.
    """
    if tee_variant not in (TDX, SEV_SNP) or not url or vsock is None:
        return None
    return HostApi(url, vsock=vsock)


def host_of(tee_variant: str, url: str, vsock: VsockTransport | None) -> Host:
    """Return whom a guest tells, who may be nobody. Raises as `host_api_of`."""
    api = host_api_of(tee_variant, url, vsock)
    return NoHost() if api is None else TellingHost(api)


def host_of_this_machine(url: str) -> Host:
    """Return whom the guest that this process runs in tells. Raises as `host_api_of`.

    Where there is no guest nobody is told, and that is logged.
    """
    if not url:
        return NoHost()
    try:
        variant = detect_platform()
    except UnavailableError as error:
        log_event("host.notice.nobody", code=error.code, message=error.message)
        return NoHost()
    return host_of(variant, url, AfVsock())


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _bad_url(text: str) -> ConfigError:
    return ConfigError(
        "host_api.url",
        f"host_api_url is {text[:80]!a}, expected vsock://CID:PORT/PATH, http://, or unix:/PATH",
    )
