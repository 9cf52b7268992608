"""The HTTP client against servers that misbehave: one deadline, one size, no redirects, only given roots."""

import datetime as dt
import gc
import ipaddress
import itertools
import re
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.errors import ConfigError, DstackError, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

Serve = Callable[[socket.socket], None]
RawServer = Callable[[Serve], int]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DRIP_SECONDS = 0.02


def read_request(connection: socket.socket) -> bytes:
    data = b""
    wanted: int | None = None
    while wanted is None or len(data) < wanted:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError
        data += chunk
        head, end, _ = data.partition(b"\r\n\r\n")
        if end:
            length = re.search(rb"(?i)content-length: (\d+)", head)
            wanted = len(head) + 4 + (int(length[1]) if length else 0)
    return data


def answering(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    return serve


def client(timeout: float = 30, max_bytes: int = 1000, ca_roots: bytes | None = None) -> HttpClient:
    return HttpClient(DirectDialer(), ca_roots, timeout, max_bytes)


def failure(http: HttpClient, port: int, scheme: str = "http", host: str = "127.0.0.1") -> str:
    with pytest.raises(DstackError) as caught:
        http.request("GET", f"{scheme}://{host}:{port}/")
    return caught.value.code


def test_reads_status_headers_and_body(raw_server: RawServer) -> None:
    port = raw_server(answering(b"HTTP/1.1 201 Made\r\nX-One: 1\r\nContent-Length: 4\r\n\r\nbody"))
    response = client().request("GET", f"http://127.0.0.1:{port}/path?q=1")
    assert (response.status, response.headers["x-one"], response.body) == (201, "1", b"body")


def test_reads_chunked_bodies(raw_server: RawServer) -> None:
    port = raw_server(
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    )
    assert client().request("GET", f"http://127.0.0.1:{port}/").body == b"abcde"


def test_sends_what_it_is_given(raw_server: RawServer) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)

    port = raw_server(serve)
    client().request(
        "POST", f"http://127.0.0.1:{port}/rpc?key=1", b"{}", {"Content-Type": "application/json"}
    )
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /rpc?key=1 HTTP/1.1"
    assert {f"Host: 127.0.0.1:{port}", "Content-Type: application/json", "Content-Length: 2"} <= set(lines)
    assert body == b"{}"


def test_credentials_in_a_url_become_a_header(raw_server: RawServer) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)

    port = raw_server(serve)
    client().request("GET", f"http://user:secret@127.0.0.1:{port}/")
    assert b"Authorization: Basic dXNlcjpzZWNyZXQ=" in seen[0]


def test_a_dropped_client_closes_its_connections_in_whatever_order_garbage_goes(
    raw_server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(OK)
        if not connection.recv(1):
            left.set()

    http = client()
    http.request("GET", f"http://127.0.0.1:{raw_server(serve)}/")
    cycle: dict[str, object] = {"socket": next(iter(http._idle.values()))[0].socket}
    cycle |= {"client": http, "self": cycle}
    del http
    gc.collect()  # so that the socket is before its client in the order of the next collection
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    del cycle
    gc.collect()
    assert left.wait(10)
    assert complaints == []


def test_does_not_follow_redirects(raw_server: RawServer) -> None:
    port = raw_server(
        answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    )
    assert client().request("GET", f"http://127.0.0.1:{port}/").status == 302


def test_ignores_proxies_in_the_environment(raw_server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    port = raw_server(answering(OK))
    assert client().request("GET", f"http://127.0.0.1:{port}/").body == b"ok"


def test_reuses_a_connection(raw_server: RawServer) -> None:
    connections = itertools.count()

    def serve(connection: socket.socket) -> None:
        next(connections)
        while True:
            read_request(connection)
            connection.sendall(OK)

    http = client()
    port = raw_server(serve)
    for _ in range(3):
        assert http.request("GET", f"http://127.0.0.1:{port}/").body == b"ok"
    assert next(connections) == 1
    http.close()


def test_opens_another_connection_where_the_peer_closed(raw_server: RawServer) -> None:
    http = client()
    port = raw_server(answering(OK))
    for _ in range(3):
        assert http.request("GET", f"http://127.0.0.1:{port}/").body == b"ok"


def drip(prefix: bytes, byte: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(prefix)
        # one byte now and then, for much longer than any deadline of these tests
        pause = threading.Event()
        while not pause.wait(DRIP_SECONDS):
            connection.sendall(byte)

    return serve


@pytest.mark.parametrize(
    "prefix",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n",
    ],
    ids=["status", "headers", "endless body", "body"],
)
def test_n20_a_deadline_ends_a_dripping_answer(raw_server: RawServer, prefix: bytes) -> None:
    """Every byte comes well within a socket timeout, the whole never."""
    assert failure(client(timeout=0.3), raw_server(drip(prefix, b"a"))) == "net.timeout"


def test_no_time_left_is_a_timeout(raw_server: RawServer) -> None:
    port = raw_server(answering(OK))
    http = client()
    http.request("GET", f"http://127.0.0.1:{port}/")
    http._timeout = 0
    assert failure(http, port) == "net.timeout"


def test_n57_a_silent_peer_times_out(raw_server: RawServer) -> None:
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        done.wait(10)

    code = failure(client(timeout=0.2), raw_server(serve))
    done.set()
    assert code == "net.timeout"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"a" * 5000,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 5000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + b"a" * 5000 + b"\r\n0\r\n\r\n",
    ],
)
def test_n20_an_oversize_body_is_refused(raw_server: RawServer, answer: bytes) -> None:
    assert failure(client(), raw_server(answering(answer))) == "net.response.oversize"


def test_n20_a_negative_chunk_size_is_no_way_around_the_limit(raw_server: RawServer) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n" + b"a" * 5000
    assert failure(client(), raw_server(answering(answer))) == "net.response.malformed"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
def test_n57_a_truncated_body_is_refused(raw_server: RawServer, answer: bytes) -> None:
    assert failure(client(), raw_server(answering(answer))) == "net.response.truncated"


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_is_refused(raw_server: RawServer, answer: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        client().request("GET", f"http://127.0.0.1:{raw_server(answering(answer))}/")
    assert caught.value.code == "net.response.malformed"


def test_n57_a_peer_that_closes_is_unavailable(raw_server: RawServer) -> None:
    with pytest.raises(UnavailableError) as caught:
        client().request("GET", f"http://127.0.0.1:{raw_server(answering(b''))}/")
    assert caught.value.code == "net.unreachable"


def test_n57_a_dead_peer_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    assert failure(client(), port) == "net.unreachable"


@pytest.mark.parametrize(
    "url", ["ftp://host/", "host", "http://", "file:///etc/hosts", "http://host:99999/", "http://[::1/"]
)
def test_refuses_other_urls(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client().request("GET", url)
    assert caught.value.code == "net.url.invalid"


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y"])
def test_refuses_to_split_a_request(raw_server: RawServer, path: str) -> None:
    port = raw_server(answering(OK))
    with pytest.raises(DstackError) as caught:
        client().request("GET", f"http://127.0.0.1:{port}{path}", headers={"X": "a\r\nb: c"})
    assert caught.value.code == "net.response.malformed"


def certificate(directory: Path, host: str) -> tuple[Path, bytes]:
    """Write a self-signed certificate with its key for `host`; returns the file and the PEM to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    try:
        san: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        san = x509.DNSName(host)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([san]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    file = directory / "server.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(pem + secret)
    return file, pem


def tls_answering(file: Path, answer: Serve) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as wrapped:
            answer(wrapped)

    return serve


def test_tls_is_checked_against_the_given_roots(raw_server: RawServer, tmp_path: Path) -> None:
    file, pem = certificate(tmp_path, "127.0.0.1")
    port = raw_server(tls_answering(file, answering(OK)))
    http = client(ca_roots=pem)
    assert http.request("GET", f"https://127.0.0.1:{port}/").body == b"ok"
    http.close()


def test_n20_tls_by_another_root_is_refused(raw_server: RawServer, tmp_path: Path) -> None:
    file, _ = certificate(tmp_path, "127.0.0.1")
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other", "127.0.0.1")
    port = raw_server(tls_answering(file, answering(OK)))
    assert failure(client(ca_roots=other), port, "https") == "net.tls.refused"


def test_n20_tls_is_never_unchecked(raw_server: RawServer, tmp_path: Path) -> None:
    file, _ = certificate(tmp_path, "127.0.0.1")
    port = raw_server(tls_answering(file, answering(OK)))
    assert failure(client(), port, "https") == "net.tls.refused"


def test_n20_tls_for_another_host_is_refused(raw_server: RawServer, tmp_path: Path) -> None:
    file, pem = certificate(tmp_path, "rpc.example")
    port = raw_server(tls_answering(file, answering(OK)))
    assert failure(client(ca_roots=pem), port, "https") == "net.tls.refused"


def test_n20_a_deadline_ends_a_dripping_answer_over_tls(raw_server: RawServer, tmp_path: Path) -> None:
    file, pem = certificate(tmp_path, "127.0.0.1")
    port = raw_server(tls_answering(file, drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a")))
    assert failure(client(timeout=0.5, ca_roots=pem), port, "https") == "net.timeout"


def test_n20_a_deadline_ends_a_tls_handshake_that_does_not_come(raw_server: RawServer) -> None:
    done = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(1)
        done.wait(10)

    code = failure(client(timeout=0.2), raw_server(serve), "https")
    done.set()
    assert code == "net.timeout"


def test_session_keys_are_not_written_where_the_environment_says(
    raw_server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    file, pem = certificate(tmp_path, "127.0.0.1")
    port = raw_server(tls_answering(file, answering(OK)))
    http = client(ca_roots=pem)
    http.request("GET", f"https://127.0.0.1:{port}/")
    http.close()
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("roots", [b"", b"not pem", b"\xff"])
def test_refuses_roots_that_are_no_certificates(roots: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        client(ca_roots=roots)
    assert caught.value.code == "net.roots.invalid"


def test_a_request_may_have_its_own_size_limit(raw_server: RawServer) -> None:
    port = raw_server(answering(OK))
    with pytest.raises(ProtocolError) as caught:
        client().request("GET", f"http://127.0.0.1:{port}/", max_bytes=1)
    assert caught.value.code == "net.response.oversize"


def test_a_request_may_have_its_own_deadline(raw_server: RawServer) -> None:
    port = raw_server(drip(b"", b"a"))
    with pytest.raises(UnavailableError) as caught:
        client().request("GET", f"http://127.0.0.1:{port}/", timeout=0.2)
    assert caught.value.code == "net.timeout"


def download(port: int, sink: bytearray, max_bytes: int = 1_000_000, timeout: float = 30) -> int:
    url = f"http://127.0.0.1:{port}/file?part=1"
    return client().download(url, sink.extend, max_bytes=max_bytes, timeout=timeout).status


@pytest.mark.parametrize("head", [b"Content-Length: 300000\r\n", b""], ids=["declared", "until closed"])
def test_a_download_goes_to_its_sink(raw_server: RawServer, head: bytes) -> None:
    content = bytes(range(250)) * 1200
    sink = bytearray()
    port = raw_server(answering(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + content))
    assert download(port, sink) == 200
    assert sink == content


def test_a_download_is_asked_for_by_path_and_query(raw_server: RawServer) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)

    download(raw_server(serve), bytearray())
    assert seen[0].startswith(b"GET /file?part=1 HTTP/1.1\r\n")


def test_a_refused_download_writes_nothing(raw_server: RawServer) -> None:
    sink = bytearray()
    port = raw_server(answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\noops"))
    assert download(port, sink) == 404
    assert sink == b""


@pytest.mark.parametrize("head", [b"Content-Length: 5000\r\n", b""], ids=["declared", "endless"])
def test_n20_an_oversize_download_is_refused(raw_server: RawServer, head: bytes) -> None:
    sink = bytearray()
    port = raw_server(answering(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + b"a" * 5000))
    with pytest.raises(ProtocolError) as caught:
        download(port, sink, max_bytes=4999)
    assert caught.value.code == "net.response.oversize"
    assert len(sink) <= 4999


def test_n20_a_deadline_ends_a_dripping_download(raw_server: RawServer) -> None:
    with pytest.raises(UnavailableError) as caught:
        download(raw_server(drip(b"HTTP/1.1 200 OK\r\n\r\n", b"a")), bytearray(), timeout=0.3)
    assert caught.value.code == "net.timeout"


def test_a_truncated_download_is_refused(raw_server: RawServer) -> None:
    with pytest.raises(ProtocolError) as caught:
        download(raw_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")), bytearray())
    assert caught.value.code == "net.response.truncated"
