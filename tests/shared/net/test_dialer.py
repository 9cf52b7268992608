"""Dialers: a connection, or an error with a stable code, whatever the proxy answers."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.dialer import MAX_REPLY_BYTES, ConnectDialer, DirectDialer, _check_reply

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Proxy:
    """The far end of a socket pair; answers from a thread and keeps what it was asked."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self._near, self.far = socket.socketpair()
        self._answer = answer
        self.asked = b""
        self._thread = threading.Thread(target=self._serve)

    def open(self, timeout: float) -> socket.socket:
        self._near.settimeout(timeout)
        self._thread.start()
        return self._near

    def close(self) -> None:
        self._near.close()
        if self._thread.ident is not None:
            self._thread.join(30)
        self.far.close()

    def _serve(self) -> None:
        try:
            while b"\r\n\r\n" not in self.asked and (chunk := self.far.recv(4096)):
                self.asked += chunk
            self._answer(self.far)
        except OSError:
            pass  # the dialer gave up first


Serve = Callable[[bytes], Proxy]


@pytest.fixture
def proxy() -> Iterator[Callable[[Callable[[socket.socket], None]], Proxy]]:
    made: list[Proxy] = []

    def make(answer: Callable[[socket.socket], None]) -> Proxy:
        made.append(Proxy(answer))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def answering(proxy: Callable[[Callable[[socket.socket], None]], Proxy]) -> Serve:
    def make(data: bytes) -> Proxy:
        def answer(sock: socket.socket) -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        return proxy(answer)

    return make


def refused_code(proxy: Proxy, timeout: float = 30) -> str:
    with pytest.raises(DstackError) as caught:
        ConnectDialer(proxy.open).dial("kms.test", 12001, timeout)
    return caught.value.code


def test_connect_returns_the_tunnel(proxy: Callable[[Callable[[socket.socket], None]], Proxy]) -> None:
    opened = threading.Event()

    def answer(sock: socket.socket) -> None:
        sock.sendall(OK)
        opened.wait(30)
        sock.sendall(b"from the target")

    peer = proxy(answer)
    with ConnectDialer(peer.open).dial("kms.test", 12001, 30) as tunnel:
        opened.set()
        assert tunnel.recv(100) == b"from the target"
    assert peer.asked == b"CONNECT kms.test:12001 HTTP/1.1\r\nHost: kms.test:12001\r\n\r\n"


def test_connect_brackets_ipv6(answering: Serve) -> None:
    peer = answering(OK)
    ConnectDialer(peer.open).dial("2001:db8::1", 443, 30).close()
    assert peer.asked.startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (b"403 Forbidden", "net.proxy.denied"),
        (b"405 Method Not Allowed", "net.proxy.denied"),
        (b"502 Bad Gateway", "net.unreachable"),
        (b"503 Service Unavailable", "net.unreachable"),
        (b"504 Gateway Timeout", "net.timeout"),
        (b"302 Found", "net.proxy.malformed"),
        (b"204 No Content", "net.proxy.malformed"),
    ],
)
def test_refusals_of_the_proxy_have_codes(answering: Serve, status: bytes, code: str) -> None:
    assert refused_code(answering(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\nbody")) == code


def test_refusal_names_the_proxys_reason(answering: Serve) -> None:
    peer = answering(b"HTTP/1.1 403 Forbidden\r\nX-Dstack-Reason: forwarder.target.denied\r\n\r\n")
    with pytest.raises(UnavailableError, match=r"forwarder\.target\.denied"):
        ConnectDialer(peer.open).dial("kms.test", 12001, 30)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
        OK + b"bytes that only the proxy can have sent",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_REPLY_BYTES,
    ],
)
def test_malformed_answers_are_refused(answering: Serve, answer: bytes) -> None:
    assert refused_code(answering(answer)) == "net.proxy.malformed"


def test_silent_proxy_times_out(proxy: Callable[[Callable[[socket.socket], None]], Proxy]) -> None:
    assert refused_code(proxy(lambda sock: void(sock.recv(1))), timeout=0.05) == "net.timeout"


def test_dripping_proxy_does_not_extend_the_time(
    proxy: Callable[[Callable[[socket.socket], None]], Proxy],
) -> None:
    stop = threading.Event()

    def drip(sock: socket.socket) -> None:
        while not stop.wait(0.01):
            sock.sendall(b"H")

    try:
        assert refused_code(proxy(drip), timeout=0.2) == "net.timeout"
    finally:
        stop.set()


def test_errors_of_the_way_to_the_proxy_pass_through() -> None:
    def closed(_timeout: float) -> socket.socket:
        raise UnavailableError("vsock.connect.refused", "nothing listens")

    with pytest.raises(UnavailableError) as caught:
        ConnectDialer(closed).dial("kms.test", 1, 1)
    assert caught.value.code == "vsock.connect.refused"


@pytest.mark.parametrize(
    ("host", "port"),
    [("a b", 1), ("a\r\nX: y", 1), ("", 1), ("kms.test", 0), ("kms.test", 65536), ("kms\u00e9", 1)],
)
def test_targets_that_cannot_be_written_are_refused(host: str, port: int) -> None:
    for dialer in (DirectDialer(), ConnectDialer(lambda _: pytest.fail("the proxy was opened"))):
        with pytest.raises(ConfigError) as caught:
            dialer.dial(host, port, 1)
        assert caught.value.code == "net.target.invalid"


def test_direct_dialer_connects() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        DirectDialer().dial("127.0.0.1", listener.getsockname()[1], 30) as sock,
    ):
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
        assert sock.recv(10) == b"hello"


def test_direct_dialer_names_a_dead_target() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(UnavailableError) as caught:
        DirectDialer().dial("127.0.0.1", port, 30)
    assert caught.value.code == "net.unreachable"


def test_direct_dialer_maps_a_failed_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UnavailableError) as caught:
        DirectDialer().dial("nowhere.test", 1, 1)
    assert caught.value.code == "net.unreachable"


@settings(deadline=None)
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: OK[:-2] + tail))
def test_any_answer_is_accepted_or_refused_with_our_error(data: bytes) -> None:
    code = "net."
    try:
        _check_reply(data + b"\r\n\r\n", "kms.test:1")
    except (ProtocolError, UnavailableError) as error:
        code = error.code
    assert code.startswith("net.")


def void(_: object) -> None:
    pass
