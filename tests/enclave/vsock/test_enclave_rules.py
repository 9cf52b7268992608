"""The rules of an app's enclave: vsock to its own loopback, and a file that its parent offers."""

import socket
from pathlib import Path

import pytest

from enclave.vsock.config import parse_config
from shared.errors import ConfigError
from tests.enclave.event_log import PATIENCE
from tests.enclave.vsock.conftest import Forward, Server
from tests.shared.refusal import refuses


def ingress(target: str, more: str = "") -> str:
    return f'[[ingress]]\nname = "web"\nlisten = 4430\ntarget = "{target}"\n{more}'


def offer(file: Path, more: str = "") -> str:
    return f'[[offer]]\nname = "env"\nlisten = 9100\nfile = "{file}"\n{more}'


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def test_a_vsock_port_leads_to_the_apps(forward: Forward, tcp_echo: Server) -> None:
    running = forward(ingress(f"127.0.0.1:{tcp_echo.port}"))
    sock = running.dial("web")
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    assert read_to_end(sock) == b"hello"
    entry = running.log.wait_for(rule="web", outcome="closed")
    assert (entry["sent"], entry["received"]) == (5, 5)


def test_an_app_that_does_not_listen_yet_costs_one_connection(forward: Forward) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    running = forward(ingress(f"127.0.0.1:{port}"))
    assert read_to_end(running.dial("web")) == b""
    running.log.wait_for(rule="web", outcome="forwarder.target.unreachable")


def test_n39_a_port_may_be_for_one_peer_alone(forward: Forward, tcp_echo: Server) -> None:
    running = forward(ingress(f"127.0.0.1:{tcp_echo.port}", "peers = [3]\n"))
    assert read_to_end(running.dial("web", cid=16)) == b""
    running.log.wait_for(rule="web", outcome="forwarder.peer.denied")


@pytest.mark.parametrize("target", ["10.0.0.1:80", "0.0.0.0:80", "127.0.0.1:0"])
def test_a_port_leads_to_loopback_and_nowhere_else(target: str) -> None:
    with refuses("forwarder.config.ingress", ConfigError):
        parse_config(ingress(target))


@pytest.mark.parametrize("target", ["localhost:80", "127.0.0.1", "127.0.0.1:65536", "vsock://3:80"])
def test_a_ports_target_is_an_address(target: str) -> None:
    with refuses("forwarder.config.listen", ConfigError):
        parse_config(ingress(target))


@pytest.mark.parametrize("content", [b"sealed", bytes(1 << 20)], ids=["small", "largest"])
def test_a_file_is_offered_as_it_is_now(forward: Forward, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encrypted-env"
    running = forward(offer(path))
    assert read_to_end(running.dial("env")) == b""
    path.write_bytes(content)
    assert read_to_end(running.dial("env")) == content
    running.log.wait_for(rule="env", outcome="closed", received=len(content))


def test_n39_a_file_may_be_for_one_peer_alone(forward: Forward, tmp_path: Path) -> None:
    path = tmp_path / "encrypted-env"
    path.write_bytes(b"sealed")
    running = forward(offer(path, "peers = [16]\n"))
    assert read_to_end(running.dial("env", cid=17)) == b""
    assert read_to_end(running.dial("env", cid=16)) == b"sealed"
    running.log.wait_for(rule="env", outcome="forwarder.peer.denied")


def test_a_file_that_is_too_large_is_not_offered(forward: Forward, tmp_path: Path) -> None:
    path = tmp_path / "encrypted-env"
    path.write_bytes(bytes((1 << 20) + 1))
    running = forward(offer(path))
    assert read_to_end(running.dial("env")) == b""
    running.log.wait_for(rule="env", outcome="forwarder.offer.oversize")


def test_a_file_that_cannot_be_read_is_told(forward: Forward, tmp_path: Path) -> None:
    running = forward(offer(tmp_path))
    assert read_to_end(running.dial("env")) == b""
    running.log.wait_for(rule="env", outcome="forwarder.offer.unreadable")


def test_a_peer_that_does_not_read_the_file_is_cut(forward: Forward, tmp_path: Path) -> None:
    path = tmp_path / "encrypted-env"
    path.write_bytes(bytes(1 << 20))
    running = forward("[limits]\nidle_seconds = 0.05\n" + offer(path))
    with running.dial("env") as sock:
        sock.settimeout(PATIENCE)
        running.log.wait_for(rule="env", outcome="forwarder.offer.stalled")
