"""One response is read from pieces of any size, and its head is bounded."""

import pytest

from enclave.serving.http_response import MAX_HEAD, HttpResponse
from shared.errors import ProtocolError, UnavailableError
from tests.shared.refusal import refuses

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
)
COUNTED = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(("raw", "status"), [(CHUNKED, 200), (COUNTED, 404)])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_reads_a_response_however_it_is_cut(raw: bytes, status: int, size: int) -> None:
    response = HttpResponse("test")
    body = b"".join(response.feed(raw[start : start + size]) for start in range(0, len(raw), size))
    assert (response.status, response.complete, body) == (status, True, b"abc")
    assert response.headers["content-type"] == "text/plain"


def test_a_response_of_no_known_length_ends_with_its_peer() -> None:
    response = HttpResponse("test")
    assert response.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == b"abc"
    assert not response.complete
    response.ended()
    assert response.complete


def test_what_precedes_a_response_is_none() -> None:
    response = HttpResponse("test")
    response.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not response.has_head
    assert not response.complete
    assert response.feed(COUNTED) == b"abc"
    assert (response.status, response.complete) == (404, True)


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 200 OK\r\nContent-", CHUNKED[:-1], CHUNKED[:-14], COUNTED[:-1]]
)
def test_refuses_half_a_response(raw: bytes) -> None:
    response = HttpResponse("test")
    response.feed(raw)
    with refuses("test.cut", UnavailableError):
        response.ended()


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_refuses_what_is_no_response(raw: bytes) -> None:
    with refuses("test.malformed", ProtocolError):
        HttpResponse("test").feed(raw)


def test_refuses_a_head_without_an_end() -> None:
    response = HttpResponse("test")
    response.feed(b"HTTP/1.1 200 OK\r\n")
    with refuses("test.head", ProtocolError):
        for _ in range(MAX_HEAD):
            response.feed(b"X: 1\r\n")


def test_refuses_chunks_that_are_mostly_framing() -> None:
    response = HttpResponse("test")
    response.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with refuses("test.head", ProtocolError):
        for _ in range(MAX_HEAD):
            response.feed(b"1;" + b"x" * 40 + b"\r\na\r\n")
