"""Sockets of systemd and of our own, and what systemd is told."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from enclave.agent.config import AgentConfig, Listener
from enclave.agent.serving import open_sockets
from enclave.agent.sockets import activated, listen, listen_to_host, listen_unix, short_path, tcp_address
from enclave.agent.supervision import answers, notify, watchdog_seconds
from enclave.platform import Platform
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.errors import ConfigError, UnavailableError
from tests.enclave.agent.agents import app_compose, running, tdx_attestor
from tests.enclave.event_log import PATIENCE
from tests.shared.refusal import refuses


@pytest.fixture
def platform(tmp_path: Path, app_enclave, vsock: UnixStandIn) -> Platform:
    tee = NitroTee(app_enclave.nsm._device, vsock)
    return Platform(image=tmp_path / "image", writable=tmp_path / "disk", tee=tee)


@pytest.fixture
def passed(tmp_path: Path) -> tuple[int, list[str]]:
    """Two listening sockets on neighbouring descriptors, as systemd passes them: the first, and the paths."""
    paths = [str(tmp_path / name) for name in ("dstack.sock", "tappd.sock")]
    made = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in paths]
    for one, path in zip(made, paths, strict=True):
        one.bind(path)
        one.listen()
    first = 200
    for number, one in enumerate(made):
        os.dup2(one.fileno(), first + number, inheritable=True)
        one.close()
    return first, paths


def environment(count: object, pid: int | None = None) -> dict[str, str]:
    return {
        "LISTEN_FDS": str(count),
        "LISTEN_PID": str(pid or os.getpid()),
        "LISTEN_FDNAMES": "a:b",
        "X": "1",
    }


def test_systemds_sockets_are_dstacks_and_then_tappds(passed: tuple[int, list[str]]) -> None:
    first, paths = passed
    found = activated(environment(2), first)
    assert [one.getsockname() for one in found] == paths
    assert not any(one.get_inheritable() for one in found)
    for one in found:
        one.close()


def test_the_variables_are_for_this_process_alone(passed: tuple[int, list[str]]) -> None:
    first, _ = passed
    variables = environment(2)
    for one in activated(variables, first):
        one.close()
    assert variables == {"X": "1"}


def test_sockets_of_another_process_are_not_ours() -> None:
    variables = environment(2, pid=1)
    assert activated(variables) == []
    assert variables == {"X": "1"}


@pytest.mark.parametrize("count", ["3", "0", "-1", "two", "9" * 30])
def test_refuses_another_number_of_sockets(count: str) -> None:
    with refuses("agent.activation", ConfigError):
        activated(environment(count))


def test_refuses_what_is_no_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        descriptor = os.dup(file.fileno())
    try:
        with refuses("agent.activation", ConfigError):
            activated(environment(1), descriptor)
    finally:
        os.close(descriptor)


def test_refuses_a_datagram_socket() -> None:
    descriptor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
    with refuses("agent.activation", ConfigError):
        activated(environment(1), descriptor)


def test_what_systemd_passes_is_not_bound_again(
    passed: tuple[int, list[str]], platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, paths = passed
    monkeypatch.setattr("enclave.agent.serving.activated", lambda variables: activated(variables, first))
    sockets = open_sockets(platform, AgentConfig(), environment(1))
    assert sockets.internal.getsockname() == paths[0]
    assert (platform.writable / "var/run/dstack/tappd.sock").is_socket()
    assert not (platform.writable / "var/run/dstack/dstack.sock").exists()
    _close(sockets.internal, sockets.tappd, *sockets.external, sockets.guest_api)
    os.close(first + 1)


def test_everybody_may_connect_to_a_socket_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "run" / "dstack.sock"
    with listen_unix(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_a_socket_that_nobody_accepts_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "dstack.sock"
    listen_unix(path).close()
    with listen_unix(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))


def test_refuses_to_take_another_agents_socket(tmp_path: Path) -> None:
    path = tmp_path / "dstack.sock"
    with listen_unix(path), refuses("agent.listen", UnavailableError):
        listen_unix(path)


def test_a_guest_with_a_long_path_is_reached(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "dstack.sock"
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with listen_unix(path) as listener, short_path(path) as name, client:
        client.connect(name)
        listener.accept()[0].close()


@pytest.mark.parametrize("address", ["unix:relative.sock", "vsock:3"])
def test_refuses_an_address_that_no_app_reaches(address: str, platform: Platform) -> None:
    with refuses("agent.listener", ConfigError):
        listen(platform, Listener(address=address))


def test_the_host_reaches_an_enclave_by_its_vsock(platform: Platform, vsock: UnixStandIn) -> None:
    found = listen_to_host(platform, AgentConfig().guest_api)
    assert found is not None
    with found, vsock.connect(16, 8000, PATIENCE):
        pass


def test_the_host_of_a_google_cloud_guest_has_no_way_in(gcp) -> None:
    guest = gcp.start(key_provider="none")
    assert listen_to_host(guest.platform, AgentConfig().guest_api) is None


def test_evidence_is_answered_on_the_images_own_port_too(platform: Platform, vsock: UnixStandIn) -> None:
    sockets = open_sockets(platform, AgentConfig(), {}, evidence=("0.0.0.0", 8080))
    assert [vsock.local_port(one) for one in sockets.external] == [8090, 8080]
    _close(sockets.internal, sockets.tappd, *sockets.external, sockets.guest_api)


def test_one_port_for_both_is_bound_once(platform: Platform) -> None:
    sockets = open_sockets(platform, AgentConfig(), {}, evidence=("0.0.0.0", 8090))
    assert len(sockets.external) == 1
    _close(sockets.internal, sockets.tappd, *sockets.external, sockets.guest_api)


def test_systemd_is_told_when_every_socket_is_answered(tmp_path: Path) -> None:
    compose, path = app_compose(), str(tmp_path / "notify")
    with _notifications(path) as told:
        with running(
            tmp_path, tdx_attestor(tmp_path, compose), compose, environment={"NOTIFY_SOCKET": path}
        ) as agent:
            assert told.recv(100) == b"READY=1"
            assert agent.call("b", "/prpc/Version")
        assert told.recv(100) == b"STOPPING=1"


def test_systemds_watchdog_is_told_that_the_agent_answers(tmp_path: Path) -> None:
    compose, path = app_compose(), str(tmp_path / "notify")
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"}
    attestor = tdx_attestor(tmp_path, compose)
    with (
        _notifications(path) as told,
        running(tmp_path, attestor, compose, environment=variables, watchdog=True),
    ):
        assert [told.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_an_agent_that_refuses_is_not_alive() -> None:
    async def run() -> tuple[bool, bool]:
        async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        refused = await answers(address)
        server.close()
        await server.wait_closed()
        return refused, await answers(address)

    assert asyncio.run(run()) == (False, False)


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "1"}, 1.0),
        ({"WATCHDOG_USEC": "no"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
    ],
)
def test_half_of_systemds_patience_passes_between_two_signs(
    variables: dict[str, str], seconds: float | None
) -> None:
    assert watchdog_seconds(variables) == seconds


def test_nobody_is_told_where_nobody_waits() -> None:
    notify("READY=1", {})
    notify("READY=1", {"NOTIFY_SOCKET": "/nowhere/at/all"})


def test_an_abstract_socket_is_told(tmp_path: Path) -> None:
    name = f"@dstack-test-{os.getpid()}-{tmp_path.name}"
    with _notifications("\0" + name[1:]) as told:
        notify("READY=1", {"NOTIFY_SOCKET": name})
        assert told.recv(100) == b"READY=1"


def test_a_wildcard_address_is_asked_on_the_loopback() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert tcp_address(listener) == ("127.0.0.1", listener.getsockname()[1])


def test_a_vsock_listener_has_no_tcp_address(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s") as listener:
        assert tcp_address(listener) is None


def _notifications(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    sock.bind(path)
    return sock


def _close(*sockets: socket.socket | None) -> None:
    for one in sockets:
        if one is not None:
            one.close()
