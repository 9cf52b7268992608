"""An HTTP answer, read within a size bound. Both of our clients read theirs here."""

import http.client

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
    headers: dict[str, str] = {}
    for name, value in answer.getheaders():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return Response(answer.status, headers, _read_body(answer, max_bytes))


def _read_body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if answer.length is not None and answer.length > max_bytes:
        raise ProtocolError("net.response.oversize", f"got {answer.length} bytes, expected up to {max_bytes}")
    body = bytearray()
    while part := answer.read(min(_READ_SIZE, max_bytes + 1 - len(body))):
        body += part
        if len(body) > max_bytes:
            raise ProtocolError("net.response.oversize", f"got more than the expected {max_bytes} bytes")
    if answer.length:
        raise ProtocolError("net.response.truncated", f"{answer.length} bytes of the body are missing")
    return bytes(body)
