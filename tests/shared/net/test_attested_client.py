"""Attested TLS client: nothing is sent to a peer that was not checked, and nothing of it is unbounded."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from shared.errors import ConfigError, DstackError, InvalidEvidence, UnavailableError
from shared.net.attested_client import AttestedConnection, Response
from shared.net.dialer import DirectDialer
from shared.ratls.certificates import client_certificate, rpc_certificate, self_signed_ca
from shared.ratls.tls import server_context

NOW = 1_800_000_000
PATIENCE = 30.0

Script = Callable[[SSL.Connection], None]


class Peer:
    """A TLS server that serves one connection by a script, in a thread, and keeps what it received."""

    def __init__(self, context: SSL.Context, script: Script) -> None:
        self._context = context
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.handshake: bool | None = None
        self.server_name: bytes | None = None
        self.client_leaf: bytes | None = None
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self._listener.close()
        self.join()

    def _serve(self) -> None:
        self._listener.settimeout(PATIENCE)
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # the test ended without a connection
        sock.settimeout(None)
        with sock:
            tls = SSL.Connection(self._context, sock)
            tls.set_accept_state()
            try:
                tls.do_handshake()
                self.handshake = True
                self.server_name = tls.get_servername()
                leaf = tls.get_peer_certificate()
                if leaf:
                    self.client_leaf = crypto.dump_certificate(crypto.FILETYPE_ASN1, leaf)
                self._script(tls)
            except (SSL.Error, OSError):
                self.handshake = bool(self.handshake)


class Fixtures:
    def __init__(self) -> None:
        self.ca_key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self_signed_ca(self.ca_key, "Dstack KMS CA", 1, NOW, NOW + 86_400)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.leaf = rpc_certificate(
            self.key, domain="kms.test", issuer=(self.ca, self.ca_key), attestation=None, now=NOW
        )
        self.client_key = ec.generate_private_key(ec.SECP256R1())
        self.client_chain = [
            client_certificate(
                self.client_key, attestation=b"evidence", issuer=(self.ca, self.ca_key), now=NOW
            )
        ]

    def context(self) -> SSL.Context:
        return server_context(key=self.key, chain=[self.leaf], client_ca=self.ca)


StartPeer = Callable[..., Peer]


@pytest.fixture(scope="module")
def made() -> Fixtures:
    return Fixtures()


@pytest.fixture
def peer(made: Fixtures) -> Iterator[StartPeer]:
    peers: list[Peer] = []

    def start(script: Script, context: SSL.Context | None = None) -> Peer:
        peers.append(Peer(context or made.context(), script))
        return peers[-1]

    yield start
    for each in peers:
        each.close()


def read_request(tls: SSL.Connection) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += tls.recv(65536)
    return data


def answering(*answers: bytes) -> Script:
    def script(tls: SSL.Connection) -> None:
        for answer in answers:
            read_request(tls)
            tls.sendall(answer)
        tls.shutdown()

    return script


def connect(
    peer: Peer, check: Callable[[bytes], None] = lambda _: None, identity: "Fixtures | None" = None
) -> AttestedConnection:
    return AttestedConnection.connect(
        DirectDialer(),
        "localhost",
        peer.port,
        check_peer=check,
        timeout=PATIENCE,
        client_key=identity.client_key if identity else None,
        client_chain=identity.client_chain if identity else None,
    )


def get(peer: Peer, max_bytes: int = 1 << 20, timeout: float | None = None) -> Response:
    with connect(peer) as connection:
        return connection.request("GET", "/", max_bytes=max_bytes, timeout=timeout)


def refused_code(peer: Peer, max_bytes: int = 1 << 20, timeout: float | None = None) -> str:
    with pytest.raises(DstackError) as caught:
        get(peer, max_bytes, timeout)
    return caught.value.code


def test_returns_status_headers_and_body(peer: StartPeer) -> None:
    answer = b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\nX-A: 1\r\nx-a: 2\r\n\r\nno"
    assert get(peer(answering(answer))) == Response(400, {"content-length": "2", "x-a": "1, 2"}, b"no")


def test_peer_is_checked_on_the_leaf_that_it_sent(peer: StartPeer, made: Fixtures) -> None:
    seen: list[bytes] = []
    with connect(peer(answering()), seen.append) as connection:
        assert connection.peer_chain[0] == made.leaf.public_bytes(Encoding.DER)
    assert seen == [made.leaf.public_bytes(Encoding.DER)]


def test_n51_refused_peer_gets_no_application_byte_and_no_certificate(
    peer: StartPeer, made: Fixtures
) -> None:
    def note(tls: SSL.Connection) -> None:
        server.received += tls.recv(65536)

    server = peer(note)

    def refuse(_leaf: bytes) -> None:
        raise InvalidEvidence("ratls.usage", "not a kms")

    with pytest.raises(InvalidEvidence) as caught:
        connect(server, refuse, made)

    server.join()
    assert caught.value.code == "ratls.usage"
    assert server.received == b""
    assert server.handshake is False  # it never saw our Finished
    assert server.client_leaf is None


def test_client_certificate_is_presented_from_memory(peer: StartPeer, made: Fixtures) -> None:
    server = peer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    with connect(server, identity=made) as connection:
        connection.request("GET", "/")
    assert server.client_leaf == made.client_chain[0].public_bytes(Encoding.DER)


def test_server_name_is_sent(peer: StartPeer) -> None:
    server = peer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    get(server)
    assert server.server_name == b"localhost"


def test_requests_follow_each_other(peer: StartPeer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    with connect(peer(answering(answer + b"a", answer + b"b"))) as connection:
        assert [connection.request("GET", "/").body for _ in range(2)] == [b"a", b"b"]


def test_request_is_written_as_http11(peer: StartPeer) -> None:
    def script(tls: SSL.Connection) -> None:
        server.received = read_request(tls)
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = peer(script)
    with connect(server) as connection:
        connection.request("POST", "/prpc/GetAppKey?json", b"{}", {"Content-Type": "application/json"})
    assert (
        server.received
        == (
            f"POST /prpc/GetAppKey?json HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: 2\r\n"
            "Content-Type: application/json\r\n\r\n{}"
        ).encode()
    )


def test_chunked_body_is_joined(peer: StartPeer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert get(peer(answering(answer))).body == b"abcde"


def test_body_until_close_notify_is_read(peer: StartPeer) -> None:
    assert get(peer(answering(b"HTTP/1.1 200 OK\r\n\r\nabc"))).body == b"abc"


def test_body_until_a_cut_is_refused(peer: StartPeer) -> None:
    def script(tls: SSL.Connection) -> None:
        read_request(tls)
        tls.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        tls.sock_shutdown(socket.SHUT_RDWR)

    assert refused_code(peer(script)) in {"net.tls.truncated", "net.unreachable"}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "net.response.truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "net.response.oversize"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 101, "net.response.oversize"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\naaa", "net.response.malformed"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + b"a" * 0xFFFF,
            "net.response.oversize",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "net.response.malformed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "net.response.malformed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "net.response.malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "net.response.malformed"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", "net.response.malformed"),
        (b"hello\r\n\r\n", "net.response.malformed"),
        (b"", "net.response.malformed"),
    ],
)
def test_bad_responses_are_refused(peer: StartPeer, answer: bytes, code: str) -> None:
    assert refused_code(peer(answering(answer)), max_bytes=100) == code


def test_body_of_exactly_the_limit_is_accepted(peer: StartPeer) -> None:
    assert get(peer(answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 100)), max_bytes=100).body == b"a" * 100


def test_large_bodies_go_both_ways(peer: StartPeer) -> None:
    size = 5 << 20

    def script(tls: SSL.Connection) -> None:
        got = len(read_request(tls).partition(b"\r\n\r\n")[2])
        while got < size:
            got += len(tls.recv(65536))
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        tls.shutdown()

    with connect(peer(script)) as connection:
        assert connection.request("POST", "/", bytes(size)).body == bytes(size)


def test_silent_peer_times_out_in_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(UnavailableError) as caught:
        AttestedConnection.connect(
            DirectDialer(),
            "127.0.0.1",
            listener.getsockname()[1],
            check_peer=lambda _: None,
            timeout=0.05,
        )
    assert caught.value.code == "net.timeout"


def test_slow_drip_does_not_extend_the_time(peer: StartPeer) -> None:
    stop = threading.Event()

    def drip(tls: SSL.Connection) -> None:
        read_request(tls)
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not stop.wait(0.01):
            tls.sendall(b"a")

    server = peer(drip)
    try:
        assert refused_code(server, timeout=0.2) == "net.timeout"
    finally:
        stop.set()


def test_peer_that_speaks_no_tls_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                sock.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DstackError) as caught:
            AttestedConnection.connect(
                DirectDialer(),
                "127.0.0.1",
                listener.getsockname()[1],
                check_peer=lambda _: None,
                timeout=PATIENCE,
            )
        thread.join(PATIENCE)
    assert caught.value.code == "net.tls.failed"


def test_connection_is_closed_after_an_error(peer: StartPeer) -> None:
    with connect(peer(answering(b"hello\r\n\r\n"))) as connection:
        with pytest.raises(DstackError) as first:
            connection.request("GET", "/")
        with pytest.raises(UnavailableError) as second:
            connection.request("GET", "/")
    assert (first.value.code, second.value.code) == ("net.response.malformed", "net.closed")


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET\r\n", "/", {}),
        ("GET", "/a b", {}),
        ("GET", "/\r\nX: y", {}),
        ("GET", "http://elsewhere/", {}),
        ("GET", "/", {"X": "a\r\nY: b"}),
        ("GET", "/", {"X Y": "a"}),
        ("GET", "/", {"Host": "elsewhere"}),
        ("GET", "/", {"content-length": "1"}),
    ],
)
def test_requests_that_could_be_split_are_not_sent(
    peer: StartPeer, method: str, path: str, headers: dict[str, str]
) -> None:
    with connect(peer(answering())) as connection, pytest.raises(ConfigError) as caught:
        connection.request(method, path, b"", headers)
    assert caught.value.code == "net.request.invalid"


def test_certificate_of_the_server_is_not_judged_by_tls(peer: StartPeer, made: Fixtures) -> None:
    """A peer that nobody vouches for reaches `check_peer`, which alone decides."""
    stranger = self_signed_ca(made.key, "nobody", 0, NOW - 10, NOW - 5)
    context = server_context(key=made.key, chain=[stranger], client_ca=made.ca)
    seen: list[bytes] = []
    connect(peer(answering(), context), seen.append).close()
    assert x509.load_der_x509_certificate(seen[0]) == stranger
