"""Attested TLS front: who gets in, what the application learns, and what no peer can hold for ever."""

import asyncio
import contextlib
import gc
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from enclave.serving import attested_tls
from enclave.serving.attested_tls import MAX_PEER_CHAIN, loop_factory
from enclave.serving.http_protocol import Limits
from shared.errors import ConfigError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer
from shared.ratls.peer import check_client_certificate
from shared.ratls.tls import client_context
from tests.enclave.event_log import PATIENCE
from tests.enclave.serving.conftest import Authority, Identity, Launcher, Running

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LARGE = 8 << 20
NOW = 1_800_000_000
GET = b"GET / HTTP/1.1\r\nHost: kms.test\r\n\r\n"


def accept_any(_leaf: bytes) -> None:
    pass


async def read_body(receive: Callable[[], Any]) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


async def app(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    if scope["type"] == "lifespan":
        return
    body = await read_body(receive)
    if scope["path"] == "/large":
        answer = bytes(LARGE)
    else:
        answer = json.dumps(
            {
                "path": scope["path"],
                "scheme": scope["scheme"],
                "client": scope["client"],
                "chain": [der.hex() for der in scope["state"].get("peer_chain", [])],
                "body": sha256(body).hexdigest(),
            }
        ).encode()
    headers = [(b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


def open_connection(running: Running, identity: Identity | None = None) -> AttestedConnection:
    return AttestedConnection.connect(
        DirectDialer(),
        running.host,
        running.port,
        check_peer=accept_any,
        timeout=30,
        client_key=identity.key if identity else None,
        client_chain=identity.chain if identity else None,
    )


def chain_seen(running: Running, identity: Identity | None = None) -> list[bytes]:
    with open_connection(running, identity) as connection:
        return [bytes.fromhex(der) for der in json.loads(connection.request("GET", "/").body)["chain"]]


def raw_tls(running: Running, context: SSL.Context | None = None) -> SSL.Connection:
    sock = running.connect()
    sock.settimeout(None)
    tls = SSL.Connection(context or client_context(), sock)
    tls.set_connect_state()
    tls.do_handshake()
    return tls


def read_until(tls: SSL.Connection, end: bytes) -> bytes:
    data = b""
    while end not in data:
        data += tls.recv(65536)
    return data


def read_to_close(tls: SSL.Connection) -> bytes:
    data = b""
    with contextlib.suppress(SSL.Error):  # closed, cut or reset
        while True:
            data += tls.recv(65536)
    return data


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass
    return data


def ended(tls: SSL.Connection) -> bool:
    try:
        while tls.recv(65536):
            pass
    except (SSL.ZeroReturnError, SSL.SysCallError):
        return True
    return False


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> LoopFactory:
    if request.param == "asyncio":
        return asyncio.new_event_loop
    return loop_factory([])


def test_application_sees_no_chain_without_client_certificate(launch: Launcher) -> None:
    assert chain_seen(launch(app)) == []


def test_a_connection_that_ended_waits_for_no_garbage_collector(
    launch: Launcher, authority: Authority, loop: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, made = threading.Event(), attested_tls._TlsConnection.connection_made

    def noting(connection: attested_tls._TlsConnection, transport: asyncio.BaseTransport) -> None:
        weakref.finalize(connection, gone.set)
        made(connection, transport)

    monkeypatch.setattr(attested_tls._TlsConnection, "connection_made", noting)
    running = launch(app, loop=loop)
    gc.disable()
    try:
        chain_seen(running, authority.client())
        assert gone.wait(PATIENCE)
    finally:
        gc.enable()


def test_application_sees_the_leaf_that_the_temp_ca_issued(
    launch: Launcher, authority: Authority, loop: LoopFactory
) -> None:
    client = authority.client()
    assert chain_seen(launch(app, loop=loop), client) == [client.chain[0].public_bytes(Encoding.DER)]


def test_application_sees_the_leaf_before_the_ca_that_was_sent_along(
    launch: Launcher, authority: Authority
) -> None:
    client = authority.client()
    client.chain = (client.chain[0], authority.certificate)
    assert chain_seen(launch(app), client) == [each.public_bytes(Encoding.DER) for each in client.chain]


def test_application_sees_a_self_issued_leaf(launch: Launcher, authority: Authority) -> None:
    client = authority.client(self_issued=True)
    assert chain_seen(launch(app), client) == [client.chain[0].public_bytes(Encoding.DER)]


def test_self_issued_leaf_with_a_forged_signature_reaches_the_application_which_refuses_it(
    launch: Launcher, authority: Authority
) -> None:
    client = authority.client(self_issued=True)
    der = bytearray(client.chain[0].public_bytes(Encoding.DER))
    der[-1] ^= 1
    client.chain = (x509.load_der_x509_certificate(bytes(der)),)

    [leaf] = chain_seen(launch(app), client)

    temp_ca = authority.certificate.public_bytes(Encoding.DER)
    with pytest.raises(InvalidEvidence) as caught:
        check_client_certificate(leaf, temp_ca_der=temp_ca, now=NOW)
    assert caught.value.code == "ratls.signature"


def test_refuses_a_client_that_another_ca_issued(launch: Launcher, authority: Authority) -> None:
    running = launch(app)
    stranger = type(authority)().client()
    with pytest.raises((ProtocolError, UnavailableError)):
        chain_seen(running, stranger)
    running.log.wait_for(code="tls.handshake.failed")


def test_n39_a_client_with_a_long_chain_is_turned_away(launch: Launcher, authority: Authority) -> None:
    """What it sent would stay in memory as long as it is connected."""
    running = launch(app)
    client = authority.client()
    for further in (MAX_PEER_CHAIN - 1, MAX_PEER_CHAIN):
        chain = (*client.chain, *[authority.certificate] * further)
        tls = raw_tls(running, client_context(key=client.key, chain=chain))
        with contextlib.suppress(SSL.Error):  # the server may have closed
            tls.sendall(GET)
            tls.shutdown()
        assert (b"200 OK" in read_to_close(tls)) == (further < MAX_PEER_CHAIN)
    running.log.wait_for(code="tls.limit.chain")


def test_refuses_a_client_that_is_no_tls(launch: Launcher) -> None:
    running = launch(app)
    with running.connect() as sock:
        sock.sendall(GET)
        read_to_end(sock)
    running.log.wait_for(code="tls.handshake.failed")
    assert chain_seen(running) == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_not_resumed(launch: Launcher, version: ssl.TLSVersion) -> None:
    running = launch(app)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version

    def talk(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
        with context.wrap_socket(running.connect(), session=session) as tls:
            tls.sendall(GET)
            tls.recv(65536)
            return tls.session, tls.session_reused

    session, _ = talk(None)
    assert talk(session)[1] is False


def test_a_client_that_only_speaks_h2_gets_no_protocol_and_a_400(launch: Launcher) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos([b"h2"])
    tls = raw_tls(launch(app), context)
    assert tls.get_alpn_proto_negotiated() == b""
    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert read_until(tls, b"\r\n").startswith(b"HTTP/1.1 400 ")


def test_http11_is_negotiated(launch: Launcher) -> None:
    tls = raw_tls(launch(app))
    assert tls.get_alpn_proto_negotiated() == b"http/1.1"


def test_large_response_arrives_whole(launch: Launcher, loop: LoopFactory) -> None:
    with open_connection(launch(app, loop=loop)) as connection:
        assert connection.request("GET", "/large").body == bytes(LARGE)


def test_large_request_arrives_whole(launch: Launcher, loop: LoopFactory) -> None:
    body = bytes(range(256)) * (LARGE // 256)
    with open_connection(launch(app, loop=loop)) as connection:
        answer = json.loads(connection.request("POST", "/", body).body)
    assert answer["body"] == sha256(body).hexdigest()


def test_requests_follow_each_other_on_one_connection(launch: Launcher) -> None:
    with open_connection(launch(app)) as connection:
        first, second = (json.loads(connection.request("GET", "/").body) for _ in range(2))
    assert first["client"] == second["client"]
    assert first["scheme"] == "https"


def test_pipelined_requests_are_answered_in_order(launch: Launcher, loop: LoopFactory) -> None:
    tls = raw_tls(launch(app, loop=loop))
    paths = [f"/{number}" for number in range(20)]
    tls.sendall(b"".join(f"GET {path} HTTP/1.1\r\nHost: k\r\n\r\n".encode() for path in paths))
    data = read_until(tls, b'"path": "/19"')
    assert [data.index(f'"path": "{path}"'.encode()) for path in paths] == sorted(
        data.index(f'"path": "{path}"'.encode()) for path in paths
    )


def test_next_connection_gets_the_rotated_certificate_and_the_open_one_stays(
    launch: Launcher, authority: Authority
) -> None:
    old, new = authority.server("old.test"), authority.server("new.test")
    contexts = [authority.context(old), authority.context(new)]
    running = launch(app, context_factory=lambda: contexts[0])

    with open_connection(running) as before:
        contexts.pop(0)
        with open_connection(running) as after:
            assert before.peer_chain[0] == old.chain[0].public_bytes(Encoding.DER)
            assert after.peer_chain[0] == new.chain[0].public_bytes(Encoding.DER)
            assert before.request("GET", "/").status == after.request("GET", "/").status == 200


def test_a_failing_context_factory_costs_one_connection(launch: Launcher, authority: Authority) -> None:
    context = authority.context(authority.server())
    failures = [ConfigError("kms.keys.missing", "no keys yet")]

    def factory() -> SSL.Context:
        if failures:
            raise failures.pop()
        return context

    running = launch(app, context_factory=factory)
    with running.connect() as sock:
        assert read_to_end(sock) == b""
    assert running.log.wait_for(code="tls.context.unavailable")["reason"] == "kms.keys.missing"
    assert chain_seen(running) == []


def test_n39_silent_handshake_is_cut(launch: Launcher, loop: LoopFactory) -> None:
    running = launch(app, limits=Limits(handshake_seconds=0.05), loop=loop)
    with running.connect() as sock:
        assert read_to_end(sock) == b""
    running.log.wait_for(code="tls.handshake.timeout")


def test_n39_dripping_handshake_is_cut(launch: Launcher) -> None:
    running = launch(app, limits=Limits(handshake_seconds=0.05))
    with running.connect() as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00")  # a record header that promises 512 bytes
        assert read_to_end(sock) == b""
    running.log.wait_for(code="tls.handshake.timeout")


def test_n39_half_open_flood_is_bounded_and_passes(launch: Launcher) -> None:
    running = launch(app, limits=Limits(connections=3, handshake_seconds=3600))
    silent = [running.connect() for _ in range(3)]
    with running.connect() as one_too_many:
        assert read_to_end(one_too_many) == b""
    running.log.wait_for(code="tls.limit.connections")
    for sock in silent:
        sock.close()
    for _ in range(1000):  # until the server has seen the closes
        try:
            assert chain_seen(running) == []
        except (UnavailableError, ProtocolError):
            continue
        break
    else:
        pytest.fail("the server never recovered")


def test_connection_without_a_request_is_cut(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(idle_seconds=0.05)))
    assert ended(tls)


def test_a_connection_between_requests_is_cut(launch: Launcher) -> None:
    running = launch(app, limits=Limits(keep_alive_seconds=0))
    tls = raw_tls(running)
    tls.sendall(GET)
    assert read_until(tls, b"\r\n").startswith(b"HTTP/1.1 200 ")
    assert ended(tls)


def test_slow_request_head_is_cut(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(request_seconds=0.05)))
    tls.sendall(b"GET / HTT")
    assert ended(tls)


def test_slow_request_body_is_cut(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(request_seconds=0.05)))
    tls.sendall(b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\nabc")
    assert ended(tls)


def test_line_breaks_between_requests_do_not_hold_a_connection(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(idle_seconds=1, keep_alive_seconds=3600)))
    tls.sendall(GET)
    read_until(tls, b"}")
    tls.sendall(b"\r\n")
    assert ended(tls)


def test_oversize_request_head_is_refused(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(head_bytes=4096)))
    tls.sendall(b"GET / HTTP/1.1\r\nX-Long: ")
    tls.sendall(b"a" * (1 << 20))
    assert b"Request head too large." in read_until(tls, b"large.")


def test_oversize_trailers_are_refused(launch: Launcher) -> None:
    tls = raw_tls(launch(app, limits=Limits(head_bytes=4096)))
    tls.sendall(b"POST / HTTP/1.1\r\nHost: k\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Long: ")
    tls.sendall(b"a" * (1 << 20))
    assert b"Request head too large." in read_until(tls, b"large.")


def test_peer_that_reads_nothing_is_cut(launch: Launcher, loop: LoopFactory) -> None:
    running = launch(app, limits=Limits(stall_seconds=0.05), loop=loop)
    tls = raw_tls(running)
    tls.sendall(b"GET /large HTTP/1.1\r\nHost: k\r\n\r\n")
    running.log.wait_for(code="tls.write.stalled")


def test_running_response_is_finished_after_close_notify(launch: Launcher, loop: LoopFactory) -> None:
    finish = threading.Event()

    async def late(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "http":
            await asyncio.to_thread(finish.wait, 30)
        await app(scope, receive, send)

    tls = raw_tls(launch(late, loop=loop))
    tls.sendall(GET)
    tls.shutdown()
    tls.sock_shutdown(socket.SHUT_WR)
    finish.set()
    assert b"200 OK" in read_until(tls, b"}")


@pytest.mark.parametrize(
    ("requests", "answers"),
    [(GET * 3, 3), (b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 150000\r\n\r\n" + bytes(150_000), 1)],
)
def test_what_was_sent_before_close_notify_is_answered(
    launch: Launcher, loop: LoopFactory, requests: bytes, answers: int
) -> None:
    """Also where the server does not read on meanwhile: it has more than it wants to hold."""
    running = launch(app, loop=loop)
    for _ in range(5):
        tls = raw_tls(running)
        tls.sendall(requests)
        tls.shutdown()
        tls.sock_shutdown(socket.SHUT_WR)
        assert read_to_close(tls).count(b"200 OK") == answers


def test_a_bare_end_behind_what_was_not_read_yet_ends_the_connection(
    launch: Launcher, loop: LoopFactory
) -> None:
    finish = threading.Event()

    async def late(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "http":
            await asyncio.to_thread(finish.wait, PATIENCE)
        await app(scope, receive, send)

    tls = raw_tls(launch(late, loop=loop))
    tls.sendall(b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 300000\r\n\r\n" + bytes(150_000))
    tls.sock_shutdown(socket.SHUT_WR)
    finish.set()
    assert b"200 OK" not in read_to_close(tls)


def test_half_a_request_before_close_notify_ends_the_connection(launch: Launcher) -> None:
    tls = raw_tls(launch(app))
    tls.sendall(b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 10\r\n\r\nabc")
    tls.shutdown()
    assert ended(tls)


def test_garbage_after_the_handshake_ends_the_connection(launch: Launcher) -> None:
    running = launch(app)
    tls = raw_tls(running)
    running.opened[-1].sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(SSL.Error):
        tls.recv(100)
    running.log.wait_for(code="tls.read.failed")


def test_peer_that_never_ends_is_cut_after_the_answer(launch: Launcher) -> None:
    running = launch(app, limits=Limits(close_seconds=0.05))
    tls = raw_tls(running)
    tls.sendall(b"BREW\r\n\r\n")  # refused at once; the request was never complete
    assert read_until(tls, b"\r\n").startswith(b"HTTP/1.1 400 ")
    assert ended(tls)
    assert read_to_end(running.opened[-1]) == b""


def test_a_signal_ends_the_server_and_leaves_the_exit_code_to_its_process() -> None:
    script = (
        "import socket, sys\n"
        "from enclave.serving.attested_tls import build_plain_server, run_server\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'http':\n"
        "        await send({'type': 'http.response.start', 'status': 204, 'headers': []})\n"
        "        await send({'type': 'http.response.body'})\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "sys.exit(7 if run_server(build_plain_server(app), [listener]) else 0)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(GET)
            assert sock.recv(100).startswith(b"HTTP/1.1 204 ")
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 7
            assert read_to_end(sock) == b""


def test_stopping_server_does_not_wait_for_handshakes(launch: Launcher) -> None:
    running = launch(app, limits=Limits(handshake_seconds=3600))
    with running.connect() as sock, running.connect():
        sock.sendall(b"\x16")
        running.stop()
        assert read_to_end(sock) == b""


def test_serves_attested_tls_on_a_unix_socket(
    launch: Launcher, authority: Authority, tmp_path: Path, loop: LoopFactory
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    launch(app, listener=listener, loop=loop)

    class UnixDialer:
        def dial(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(tmp_path / "s"))
            return sock

    client = authority.client()
    with AttestedConnection.connect(
        UnixDialer(),
        "kms.test",
        1,
        check_peer=accept_any,
        timeout=30,
        client_key=client.key,
        client_chain=client.chain,
    ) as connection:
        answer = json.loads(connection.request("GET", "/").body)
    assert answer["chain"] == [client.chain[0].public_bytes(Encoding.DER).hex()]


def test_plain_server_serves_without_tls(launch: Launcher) -> None:
    running = launch(app, plain=True)
    with running.connect() as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = read_to_end(sock)
    assert b'"scheme": "http"' in answer


def test_plain_server_bounds_connections(launch: Launcher) -> None:
    running = launch(app, plain=True, limits=Limits(connections=1, idle_seconds=3600))
    with running.connect() as first:
        first.sendall(GET)
        first.recv(65536)
        with running.connect() as second:
            assert read_to_end(second) == b""


def test_uvloop_is_not_used_for_vsock() -> None:
    class Vsock:
        family = socket.AF_VSOCK

    assert loop_factory([Vsock()]) is asyncio.new_event_loop  # type: ignore[list-item]
    assert loop_factory([]) is not asyncio.new_event_loop


def test_log_names_no_bytes_of_the_peer(launch: Launcher) -> None:
    running = launch(app)
    with running.connect() as sock:
        sock.sendall(b"secret" * 100)
        read_to_end(sock)
    assert "secret" not in str(running.log.wait_for(code="tls.handshake.failed"))


@pytest.fixture
def answering(launch: Launcher, loop: LoopFactory) -> tuple[Running, threading.Event, threading.Event]:
    """A plain server that answers when the first event is set, and sets the second when its peer is gone."""
    may_answer, gone = threading.Event(), threading.Event()

    async def patient(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "lifespan":
            return
        await read_body(receive)
        await asyncio.to_thread(may_answer.wait, PATIENCE)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(LARGE), "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    running = launch(patient, plain=True, limits=Limits(stall_seconds=0.05), loop=loop)
    return running, may_answer, gone


def test_plain_peer_that_reads_nothing_is_cut(
    answering: tuple[Running, threading.Event, threading.Event],
) -> None:
    running, may_answer, gone = answering
    may_answer.set()
    running.connect().sendall(GET)
    assert gone.wait(PATIENCE)


def test_plain_peer_that_ended_its_side_is_answered(launch: Launcher, loop: LoopFactory) -> None:
    may_answer = threading.Event()

    async def slow(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "http":
            await asyncio.to_thread(may_answer.wait, PATIENCE)
        await app(scope, receive, send)

    running = launch(slow, plain=True, loop=loop)
    sock, other = running.connect(), running.connect()
    sock.sendall(b"GET /large HTTP/1.1\r\nHost: kms.test\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    other.shutdown(socket.SHUT_WR)
    assert other.recv(1) == b""  # the end of a side is seen
    may_answer.set()
    assert read_to_end(sock).endswith(bytes(LARGE))


def test_plain_peer_that_ended_its_side_within_a_request_is_not(launch: Launcher, loop: LoopFactory) -> None:
    running = launch(app, plain=True, loop=loop)
    sock = running.connect()
    sock.sendall(b"POST / HTTP/1.1\r\nHost: kms.test\r\nContent-Length: 5\r\n\r\n1234")
    sock.shutdown(socket.SHUT_WR)
    assert read_to_end(sock) == b""
