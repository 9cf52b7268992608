"""An HTTP answer, read within a size bound. Both of our clients read theirs here."""

import http.client
from collections.abc import Callable

import msgspec

from shared.errors import ProtocolError

_READ_SIZE = 64 * 1024


class Response(msgspec.Struct, frozen=True):
    """An HTTP answer; header names are lower case, repeated headers joined with a comma."""

    status: int
    headers: dict[str, str]
    body: bytes


class StrictHttpResponse(http.client.HTTPResponse):
    """The standard library's, without its way around a size limit.

    It reads a chunk size with `int`, which takes a sign: -1 would then read until the peer closes, whatever
    amount was asked for.
    """

    def _read_next_chunk_size(self) -> int:
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]  # absent from the type stubs
        if size < 0:
            raise http.client.HTTPException("negative chunk size")
        return size


def read_response(answer: http.client.HTTPResponse, max_bytes: int) -> Response:
    """Read the rest of an answer whose head was read.

    Raises `ProtocolError`: `net.response.oversize`, `net.response.truncated`; `OSError` and
    `http.client.HTTPException` are the caller's to map.
    """
    body = bytearray()
    copy_body(answer, body.extend, max_bytes)
    return Response(answer.status, headers_of(answer), bytes(body))


def headers_of(answer: http.client.HTTPResponse) -> dict[str, str]:
    """Return the headers as `Response` has them."""
    headers: dict[str, str] = {}
    for name, value in answer.getheaders():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def copy_body(answer: http.client.HTTPResponse, sink: Callable[[bytes], object], max_bytes: int) -> None:
    """Hand the body to `sink` piece by piece; raises what `read_response` raises."""
    if answer.length is not None and answer.length > max_bytes:
        raise ProtocolError("net.response.oversize", f"got {answer.length} bytes, expected up to {max_bytes}")
    left = max_bytes
    while part := answer.read(min(_READ_SIZE, left + 1)):
        left -= len(part)
        if left < 0:
            raise ProtocolError("net.response.oversize", f"got more than the expected {max_bytes} bytes")
        sink(part)
    if answer.length:
        raise ProtocolError("net.response.truncated", f"{answer.length} bytes of the body are missing")
