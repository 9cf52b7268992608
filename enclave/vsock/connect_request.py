"""The head of a CONNECT request and the answers to it: pure text, no socket."""

import json
import re

import msgspec

from shared.errors import DstackError, PolicyDenied, ProtocolError

HEAD_END = b"\r\n\r\n"

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

REASON_HEADER = "X-Dstack-Reason"
"""Carries the error code of a refusal; the JSON body repeats it with a sentence."""

_REQUEST_LINE = re.compile(rb"([!-~]{1,32}) ([!-~]+) HTTP/1\.[01]")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z._-]{1,253}):([1-9][0-9]{0,4})")
_HEADER_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00\r\n]*")

_STATUS = {
    "forwarder.head.malformed": "400 Bad Request",
    "forwarder.target.malformed": "400 Bad Request",
    "forwarder.target.denied": "403 Forbidden",
    "forwarder.peer.denied": "403 Forbidden",
    "forwarder.method.denied": "405 Method Not Allowed",
    "forwarder.head.timeout": "408 Request Timeout",
    "forwarder.head.oversize": "431 Request Header Fields Too Large",
    "forwarder.target.unresolved": "502 Bad Gateway",
    "forwarder.target.unreachable": "502 Bad Gateway",
    "forwarder.limit.total": "503 Service Unavailable",
    "forwarder.limit.listener": "503 Service Unavailable",
    "forwarder.target.timeout": "504 Gateway Timeout",
}


class Target(msgspec.Struct, frozen=True):
    """Where a client wants to go, as it wrote it; an IPv6 address without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_connect(head: bytes) -> Target:
    """Parse a request head (without the empty line that ends it).

    Raises `ProtocolError("forwarder.head.malformed")`, `PolicyDenied("forwarder.method.denied")` for another
    method, `ProtocolError("forwarder.target.malformed")`. Only the request line says where to go: a Host
    header is not read.
    """
    request_line, *headers = head.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None or not all(_HEADER_LINE.fullmatch(line) for line in headers):
        raise ProtocolError("forwarder.head.malformed", "got something else than an http/1 request head")
    if match[1] != b"CONNECT":
        raise PolicyDenied("forwarder.method.denied", f"got method {match[1].decode()!r}, expected 'CONNECT'")
    authority = match[2].decode("ascii")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or int(parts[2]) > 65535:
        raise ProtocolError("forwarder.target.malformed", f"got {authority[:80]!r}, expected host:port")
    return Target(parts[1].strip("[]"), int(parts[2]))


def refusal(error: DstackError) -> bytes:
    """Return the HTTP answer that refuses a client for `error`, one of the codes above."""
    body = json.dumps({"error": error.message, "code": error.code}).encode()
    head = (
        f"HTTP/1.1 {_STATUS[error.code]}\r\n{REASON_HEADER}: {error.code}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
