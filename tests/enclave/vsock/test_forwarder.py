"""The forwarder: what it carries, what it refuses, and that nobody can hold or kill it."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from enclave.vsock import forwarder as forwarder_module
from enclave.vsock.transport import UnixStandIn
from shared.errors import UnavailableError
from shared.net.dialer import ConnectDialer
from tests.enclave.vsock.conftest import Forward, Running, Serve, Server

OUTBOUND = '[[outbound]]\nname = "egress"\nlisten = 3128\n'
INBOUND = '[[inbound]]\nname = "kms"\nlisten = "127.0.0.1:0"\ntarget = "vsock://16:8000"\n'


def outbound(port: int, host: str = "127.0.0.1", more: str = "") -> str:
    return f'{more}{OUTBOUND}allow = [{{ host = "{host}", ports = [{port}] }}]\n'


def limits(**values: float) -> str:
    return "[limits]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except (ConnectionResetError, BrokenPipeError):
        pass
    return data


def read_head(sock: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n") and (chunk := sock.recv(1)):
        data += chunk
    return data


def connect_through(sock: socket.socket, target: str) -> bytes:
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    return read_head(sock)


def refusal(sock: socket.socket, request: bytes) -> tuple[int, str]:
    """Send a request, and return the status and code of the answer, which must end the connection."""
    sock.sendall(request)
    head, _, body = read_to_end(sock).partition(b"\r\n\r\n")
    sock.close()
    answer = json.loads(body)
    assert f"X-Dstack-Reason: {answer['code']}".encode() in head
    return int(head.split(b" ")[1]), answer["code"]


# Outbound


def test_connect_reaches_a_listed_target(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port))
    sock = running.dial("egress")
    assert connect_through(sock, f"127.0.0.1:{tcp_echo.port}").startswith(b"HTTP/1.1 200 ")
    sock.sendall(b"hello")
    assert sock.recv(100) == b"hello"


def test_connect_dialer_and_forwarder_understand_each_other(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port))
    dialer = ConnectDialer(lambda _timeout: running.dial("egress"))
    with dialer.dial("127.0.0.1", tcp_echo.port, 30) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hello"
    with pytest.raises(UnavailableError) as caught:
        dialer.dial("elsewhere.test", tcp_echo.port, 30)
    assert caught.value.code == "net.proxy.denied"


def test_names_are_resolved_by_the_forwarder(
    forward: Forward, tcp_echo: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(host: str, port: int, *_: object, **__: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    running = forward(outbound(tcp_echo.port, "kms.test"))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    sock = running.dial("egress")
    assert connect_through(sock, f"KMS.test:{tcp_echo.port}").startswith(b"HTTP/1.1 200 ")
    assert [name.lower() for name in asked] == ["kms.test"]


def test_second_address_is_tried_when_the_first_is_dead(
    forward: Forward, tcp_echo: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead_port = dead.getsockname()[1]

    def resolve(_host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", each)) for each in (dead_port, port)
        ]

    running = forward(outbound(tcp_echo.port, "kms.test"))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert connect_through(running.dial("egress"), f"kms.test:{tcp_echo.port}").startswith(b"HTTP/1.1 200 ")


def test_bytes_sent_with_the_connect_head_are_forwarded(forward: Forward, tcp_echo: Server) -> None:
    sock = forward(outbound(tcp_echo.port)).dial("egress")
    sock.sendall(f"CONNECT 127.0.0.1:{tcp_echo.port} HTTP/1.1\r\n\r\nearly".encode())
    assert read_head(sock).startswith(b"HTTP/1.1 200 ")
    assert sock.recv(100) == b"early"


@pytest.mark.parametrize(
    ("request_head", "status", "code"),
    [
        (b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", 403, "forwarder.target.denied"),
        (b"CONNECT localhost:443 HTTP/1.1\r\n\r\n", 403, "forwarder.target.denied"),
        (b"CONNECT 127.1:443 HTTP/1.1\r\n\r\n", 403, "forwarder.target.denied"),
        (b"CONNECT 169.254.169.254:443 HTTP/1.1\r\n\r\n", 403, "forwarder.target.denied"),
        (b"CONNECT a:b HTTP/1.1\r\n\r\n", 400, "forwarder.target.malformed"),
        (b"GET http://127.0.0.1:443/ HTTP/1.1\r\n\r\n", 405, "forwarder.method.denied"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "forwarder.head.malformed"),
        (b"CONNECT " + b"a" * 9000 + b":443 HTTP/1.1\r\n\r\n", 431, "forwarder.head.oversize"),
        (b"CONNECT a:443 HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, 431, "forwarder.head.oversize"),
    ],
)
def test_refuses_what_it_does_not_serve(
    forward: Forward, request_head: bytes, status: int, code: str
) -> None:
    running = forward(outbound(443))
    assert refusal(running.dial("egress"), request_head) == (status, code)
    running.log.wait_for(outcome=code)


def test_n59_rule_without_allow_list_denies(forward: Forward) -> None:
    sock = forward(OUTBOUND).dial("egress")
    assert refusal(sock, b"CONNECT localhost:443 HTTP/1.1\r\n\r\n") == (403, "forwarder.target.denied")


def test_head_that_ends_early_is_malformed(forward: Forward) -> None:
    sock = forward(outbound(443)).dial("egress")
    sock.sendall(b"CONNECT a:443")
    sock.shutdown(socket.SHUT_WR)
    assert b"forwarder.head.malformed" in read_to_end(sock)


def test_slow_head_is_cut(forward: Forward) -> None:
    running = forward(outbound(443, more=limits(head_seconds=0.05)))
    assert refusal(running.dial("egress"), b"CONN") == (408, "forwarder.head.timeout")


def test_dead_target_is_a_502(forward: Forward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    running = forward(outbound(port))
    head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()
    assert refusal(running.dial("egress"), head) == (502, "forwarder.target.unreachable")


def test_unresolvable_target_is_a_502(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    running = forward(outbound(443, "kms.test"))
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    request = b"CONNECT kms.test:443 HTTP/1.1\r\n\r\n"
    assert refusal(running.dial("egress"), request) == (502, "forwarder.target.unresolved")


def test_slow_name_server_is_a_504(forward: Forward, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> list[Any]:
        release.wait(30)
        return []

    running = forward(outbound(443, "kms.test", limits(connect_seconds=0.05)))
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        request = b"CONNECT kms.test:443 HTTP/1.1\r\n\r\n"
        assert refusal(running.dial("egress"), request) == (504, "forwarder.target.timeout")
    finally:
        release.set()


def test_n39_peer_with_another_cid_is_refused(forward: Forward) -> None:
    running = forward(outbound(443) + "peers = [16]\n")
    request = b"CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n"
    assert refusal(running.dial("egress", cid=17), request) == (403, "forwarder.peer.denied")
    running.log.wait_for(peer="vsock:17", outcome="forwarder.peer.denied")


def test_n39_peer_with_the_expected_cid_is_served(forward: Forward, tcp_echo: Server) -> None:
    sock = forward(outbound(tcp_echo.port) + "peers = [16]\n").dial("egress", cid=16)
    assert connect_through(sock, f"127.0.0.1:{tcp_echo.port}").startswith(b"HTTP/1.1 200 ")


# Inbound and bridge


def test_inbound_reaches_the_enclave(forward: Forward, serve: Serve, tmp_path: Path) -> None:
    serve(UnixStandIn(tmp_path, 16).listen(8000), lambda sock: sock.sendall(sock.recv(100)))
    sock = forward(INBOUND).dial("kms")
    sock.sendall(b"hello")
    assert sock.recv(100) == b"hello"


def test_inbound_without_an_enclave_is_closed_and_named(forward: Forward) -> None:
    running = forward(INBOUND)
    assert read_to_end(running.dial("kms")) == b""
    running.log.wait_for(rule="kms", outcome="vsock.connect.refused")


def test_bridge_leads_from_loopback_through_the_parent(forward: Forward, tcp_echo: Server) -> None:
    forward(outbound(tcp_echo.port))
    rules = '[[bridge]]\nname = "proxy"\nlisten = "127.0.0.1:0"\ntarget = "vsock://3:3128"\n'
    sock = forward(rules, cid=16).dial("proxy")
    assert connect_through(sock, f"127.0.0.1:{tcp_echo.port}").startswith(b"HTTP/1.1 200 ")
    sock.sendall(b"hello")
    assert sock.recv(100) == b"hello"


def test_ipv6_listener_is_bound(forward: Forward) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no ipv6")
    try:
        running = forward(INBOUND.replace("127.0.0.1:0", "[::1]:0"))
    except UnavailableError as error:
        pytest.skip(f"this machine has no ipv6 loopback: {error}")
    assert running.forwarder.listeners["kms"].startswith("[::1]:")


# Bytes


def test_half_close_reaches_the_other_side_and_the_answer_comes_back(forward: Forward, serve: Serve) -> None:
    def count(sock: socket.socket) -> None:
        total = len(read_to_end(sock))  # ends only when the client's half ends
        sock.sendall(str(total).encode())

    server = serve(socket.create_server(("127.0.0.1", 0)), count)
    running = forward(outbound(server.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{server.port}")
    sock.sendall(bytes(1000))
    sock.shutdown(socket.SHUT_WR)
    assert read_to_end(sock) == b"1000"
    entry = running.log.wait_for(rule="egress", outcome="closed")
    assert (entry["sent"], entry["received"]) == (1000, 4)
    assert entry["target"] == f"127.0.0.1:{server.port}"


def test_half_close_of_the_target_leaves_the_way_there_open(forward: Forward, serve: Serve) -> None:
    got = []

    def end_first(sock: socket.socket) -> None:
        sock.shutdown(socket.SHUT_WR)
        got.append(read_to_end(sock))

    server = serve(socket.create_server(("127.0.0.1", 0)), end_first)
    running = forward(outbound(server.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{server.port}")
    assert sock.recv(100) == b""
    sock.sendall(b"still here")
    sock.close()
    running.log.wait_for(outcome="closed")
    server.close()
    assert got == [b"still here"]


def test_large_streams_arrive_whole_in_both_directions(forward: Forward, tcp_echo: Server) -> None:
    data = bytes(range(256)) * (64 << 10)  # 16 MiB
    sock = forward(outbound(tcp_echo.port)).dial("egress")
    connect_through(sock, f"127.0.0.1:{tcp_echo.port}")

    def send() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read_to_end(sock) == data
    sender.join()


def test_target_that_does_not_read_holds_back_the_client(forward: Forward, serve: Serve) -> None:
    go_on = threading.Event()
    total: list[int] = []

    def late(sock: socket.socket) -> None:
        go_on.wait(30)
        total.append(len(read_to_end(sock)))

    server = serve(socket.create_server(("127.0.0.1", 0)), late)
    running = forward(outbound(server.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{server.port}")
    sock.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 1 << 30:
            sent += sock.send(bytes(1 << 20))
    assert sent < 1 << 30  # kernel buffers and one chunk, then nothing more was taken
    go_on.set()
    sock.close()
    running.log.wait_for(outcome="closed")
    server.close()
    assert total == [sent]


def test_reset_target_ends_the_client(forward: Forward, serve: Serve) -> None:
    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    server = serve(socket.create_server(("127.0.0.1", 0)), reset)
    running = forward(outbound(server.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{server.port}")
    read_to_end(sock)
    sock.close()
    running.log.wait_for(rule="egress", target=f"127.0.0.1:{server.port}")


# Limits


def test_idle_connection_is_cut(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port, more=limits(idle_seconds=0.05)))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{tcp_echo.port}")
    assert read_to_end(sock) == b""
    running.log.wait_for(outcome="idle")


def test_n39_half_open_flood_is_bounded_and_passes(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port, more=limits(connections=3, head_seconds=3600)))
    silent = [running.dial("egress") for _ in range(3)]
    assert b"forwarder.limit.total" in read_to_end(running.dial("egress"))
    running.log.wait_for(outcome="forwarder.limit.total")
    for sock in silent:
        sock.close()
        running.log.wait_for(outcome="forwarder.head.malformed")
    for _ in range(1000):  # until the forwarder has seen every close
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            reply = connect_through(running.dial("egress"), f"127.0.0.1:{tcp_echo.port}")
            if reply.startswith(b"HTTP/1.1 200 "):
                break
    else:
        pytest.fail("the forwarder never recovered")


def test_flood_at_one_listener_leaves_the_other_free(forward: Forward, tcp_echo: Server) -> None:
    rules = limits(connections=8, head_seconds=3600) + OUTBOUND + "connections = 2\n"
    rules += outbound(tcp_echo.port).replace("egress", "other").replace("3128", "3129")
    running = forward(rules)
    for _ in range(2):
        running.dial("egress")
    assert b"forwarder.limit.listener" in read_to_end(running.dial("egress"))
    reply = connect_through(running.dial("other"), f"127.0.0.1:{tcp_echo.port}")
    assert reply.startswith(b"HTTP/1.1 200 ")


def test_inbound_over_the_limit_is_closed(forward: Forward, serve: Serve, tmp_path: Path) -> None:
    serve(UnixStandIn(tmp_path, 16).listen(8000), lambda sock: sock.sendall(sock.recv(100)))
    running = forward(INBOUND + "connections = 1\n")
    first = running.dial("kms")
    assert read_to_end(running.dial("kms")) == b""
    running.log.wait_for(outcome="forwarder.limit.listener")
    first.sendall(b"hello")
    assert first.recv(100) == b"hello"


def test_a_bug_in_one_connection_does_not_end_the_others(
    forward: Forward, tcp_echo: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = forward(outbound(tcp_echo.port))
    with monkeypatch.context() as patch:
        patch.setattr(forwarder_module, "parse_connect", lambda _head: 1 // 0)
        read_to_end_of(running, b"CONNECT a:1 HTTP/1.1\r\n\r\n")
        running.log.wait_for(outcome="internal.ZeroDivisionError")
    reply = connect_through(running.dial("egress"), f"127.0.0.1:{tcp_echo.port}")
    assert reply.startswith(b"HTTP/1.1 200 ")


def read_to_end_of(running: Running, request: bytes) -> bytes:
    sock: socket.socket = running.dial("egress")
    sock.sendall(request)
    return read_to_end(sock)


# Life


def test_log_line_has_no_payload(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{tcp_echo.port}")
    sock.sendall(b"secret")
    sock.recv(100)
    sock.close()
    entry = running.log.wait_for(rule="egress")
    assert set(entry) == {"event", "rule", "peer", "target", "sent", "received", "ms", "outcome"}
    assert entry["peer"] == "vsock:16"
    assert "secret" not in json.dumps(entry)


def test_stop_lets_running_connections_finish(forward: Forward, tcp_echo: Server, tmp_path: Path) -> None:
    running = forward(outbound(tcp_echo.port))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{tcp_echo.port}")
    running.begin_stop()
    path = tmp_path / "3_3128.sock"
    while path.exists():  # new connections are refused first
        threading.Event().wait(0.005)
    sock.sendall(b"hello")
    assert sock.recv(100) == b"hello"
    sock.close()
    running.join()
    running.log.wait_for(outcome="closed")


def test_stop_cuts_what_does_not_finish(forward: Forward, tcp_echo: Server) -> None:
    running = forward(outbound(tcp_echo.port, more=limits(drain_seconds=0.05)))
    sock = running.dial("egress")
    connect_through(sock, f"127.0.0.1:{tcp_echo.port}")
    running.begin_stop()
    assert read_to_end(sock) == b""
    running.join()
    running.log.wait_for(outcome="stopped")


def test_taken_port_is_named_and_nothing_stays_open(forward: Forward, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        rules = (
            INBOUND
            + outbound(443)
            + INBOUND.replace("kms", "late").replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        )
        with pytest.raises(UnavailableError) as caught:
            forward(rules)
    assert caught.value.code == "forwarder.listen.failed"
    assert list(tmp_path.glob("*.sock")) == []


# As a program


def test_program_prints_its_listeners_serves_and_stops_on_sigterm(tmp_path: Path, tcp_echo: Server) -> None:
    config = tmp_path / "forwarder.toml"
    rules = INBOUND + outbound(tcp_echo.port).replace("3128", "0")
    config.write_text(f'transport = "unix"\ndirectory = "{tmp_path}"\ncid = 3\n{rules}')
    command = [sys.executable, "-m", "enclave.vsock", "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["listeners"]["kms"].startswith("127.0.0.1:")
        port = int(ready["listeners"]["egress"].removeprefix("vsock:"))
        with UnixStandIn(tmp_path, 16).connect(3, port, 30) as sock:
            target = f"127.0.0.1:{tcp_echo.port}"
            assert connect_through(sock, target).startswith(b"HTTP/1.1 200 ")
        connection = json.loads(process.stdout.readline())
        assert (connection["outcome"], connection["target"]) == ("closed", target)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert list(tmp_path.glob("*.sock")) == []


def test_program_names_a_wrong_configuration(tmp_path: Path) -> None:
    config = tmp_path / "forwarder.toml"
    config.write_text("")
    command = [sys.executable, "-m", "enclave.vsock", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert json.loads(done.stderr)["code"] == "forwarder.config.empty"
