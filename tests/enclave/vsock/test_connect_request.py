"""CONNECT heads: strictly parsed, refused with a status and a code."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.vsock.connect_request import Target, parse_connect, refusal
from shared.errors import DstackError, PolicyDenied, ProtocolError


@pytest.mark.parametrize(
    ("head", "target"),
    [
        (b"CONNECT kms.test:12001 HTTP/1.1\r\nHost: kms.test:12001", Target("kms.test", 12001)),
        (b"CONNECT kms.test:443 HTTP/1.0", Target("kms.test", 443)),
        (b"CONNECT [::1]:443 HTTP/1.1", Target("::1", 443)),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: elsewhere:2\r\nX-Y:", Target("a", 1)),
    ],
)
def test_reads_the_target_of_the_request_line(head: bytes, target: Target) -> None:
    assert parse_connect(head) == target


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"GET http://kms.test/ HTTP/1.1", "forwarder.method.denied"),
        (b"POST / HTTP/1.1", "forwarder.method.denied"),
        (b"connect kms.test:443 HTTP/1.1", "forwarder.method.denied"),
        (b"", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443 HTTP/2", "forwarder.head.malformed"),
        (b"CONNECT  kms.test:443 HTTP/1.1", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443 HTTP/1.1\nHost: a", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443 HTTP/1.1\r\nno colon", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443 HTTP/1.1\r\n folded: x", "forwarder.head.malformed"),
        (b"CONNECT kms.test:443 HTTP/1.1\r\nA: \x00", "forwarder.head.malformed"),
        (b"CONNECT kms.test HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT kms.test:0 HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT kms.test:0443 HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT kms.test:65536 HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT https://kms.test:443 HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT user@kms.test:443 HTTP/1.1", "forwarder.target.malformed"),
        (b"CONNECT ::1:443 HTTP/1.1", "forwarder.target.malformed"),
    ],
)
def test_refuses_other_heads(head: bytes, code: str) -> None:
    with pytest.raises(DstackError) as caught:
        parse_connect(head)
    assert caught.value.code == code
    assert refusal(caught.value).startswith(b"HTTP/1.1 4")


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(b"CONNECT a:1 HTTP/1.1\r\n".__add__))
def test_any_head_is_a_target_or_our_error(head: bytes) -> None:
    try:
        target = parse_connect(head)
    except (ProtocolError, PolicyDenied) as error:
        assert refusal(error).startswith(b"HTTP/1.1 4")  # noqa: PT017 - either outcome is right
    else:
        assert 1 <= target.port <= 65535


def test_refusal_carries_the_code_twice() -> None:
    head, _, body = refusal(PolicyDenied("forwarder.target.denied", "no")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 Forbidden\r\nX-Dstack-Reason: forwarder.target.denied\r\n")
    assert json.loads(body) == {"error": "no", "code": "forwarder.target.denied"}
    assert f"Content-Length: {len(body)}".encode() in head
