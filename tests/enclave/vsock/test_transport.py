"""VSOCK addresses, the kernel's transport by a fake socket, and the unix stand-in by real ones."""

import asyncio
import errno
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.vsock.transport import AfVsock, UnixStandIn, VsockAddress, connect_async, parse_address
from shared.errors import ConfigError, DstackError, UnavailableError


@pytest.mark.parametrize(
    ("text", "cid", "port"),
    [("vsock://3:3128", 3, 3128), ("vsock://16:8000", 16, 8000), ("vsock://4294967294:1", 4294967294, 1)],
)
def test_parses_addresses(text: str, cid: int, port: int) -> None:
    assert parse_address(text) == VsockAddress(cid, port)
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3:3128",
        "vsock://3",
        "vsock://3:",
        "vsock://3:0",
        "vsock://03:1",
        "vsock://3:1/path",
        "vsock://-1:1",
        "vsock://4294967295:1",
        "vsock://3:4294967295",
        "vsock://3:99999999999",
        "vsock://\u0663:1",
        "vsock://3:1\n",
    ],
)
def test_refuses_malformed_addresses(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert caught.value.code == "vsock.address.malformed"


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(max_size=20).map("vsock://".__add__))
def test_any_text_is_an_address_or_our_error(text: str) -> None:
    try:
        again = str(parse_address(text))
    except ConfigError as error:
        again = text if error.code == "vsock.address.malformed" else error.code
    assert again == text


def refused_code(call: Callable[[], object]) -> str:
    with pytest.raises(DstackError) as caught:
        call()
    return caught.value.code


# The stand-in


def test_stand_in_carries_bytes(tmp_path: Path) -> None:
    parent, enclave = UnixStandIn(tmp_path, 3), UnixStandIn(tmp_path, 16)
    with parent.listen(3128) as listener, enclave.connect(3, 3128, 5) as near:
        far, _ = listener.accept()
        with far:
            near.sendall(b"hello")
            assert far.recv(10) == b"hello"
            assert parent.peer_cid(far) == 16
        assert near.gettimeout() == 5


def test_stand_in_leaves_only_its_listener_in_the_directory(tmp_path: Path) -> None:
    parent = UnixStandIn(tmp_path, 3)
    listener = parent.listen(3128)
    UnixStandIn(tmp_path, 16).connect(3, 3128, 5).close()
    assert [path.name for path in tmp_path.iterdir()] == ["3_3128.sock"]
    parent.close_listener(listener)
    assert list(tmp_path.iterdir()) == []


def test_stand_in_socket_is_private(tmp_path: Path) -> None:
    with UnixStandIn(tmp_path, 3).listen(3128):
        assert stat.S_IMODE((tmp_path / "3_3128.sock").stat().st_mode) == 0o600


def test_stand_in_replaces_a_stale_socket(tmp_path: Path) -> None:
    UnixStandIn(tmp_path, 3).listen(3128).close()  # as a killed process leaves it
    with UnixStandIn(tmp_path, 3).listen(3128):
        UnixStandIn(tmp_path, 16).connect(3, 3128, 5).close()


def test_stand_in_keeps_a_live_socket(tmp_path: Path) -> None:
    with UnixStandIn(tmp_path, 3).listen(3128) as listener:
        assert refused_code(lambda: UnixStandIn(tmp_path, 3).listen(3128)) == "vsock.listen.in_use"
        listener.accept()[0].close()
        UnixStandIn(tmp_path, 16).connect(3, 3128, 5).close()


def test_stand_in_keeps_a_file_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "3_3128.sock"
    path.write_text("precious")
    assert refused_code(lambda: UnixStandIn(tmp_path, 3).listen(3128)) == "vsock.listen.in_use"
    assert path.read_text() == "precious"


def test_stand_in_picks_a_free_port(tmp_path: Path) -> None:
    transport = UnixStandIn(tmp_path, 3)
    with transport.listen(0) as listener:
        port = transport.local_port(listener)
        assert (tmp_path / f"3_{port}.sock").exists()


def test_stand_in_names_an_absent_peer(tmp_path: Path) -> None:
    assert refused_code(lambda: UnixStandIn(tmp_path, 16).connect(3, 1, 5)) == "vsock.connect.refused"


def test_stand_in_names_a_dead_peer(tmp_path: Path) -> None:
    UnixStandIn(tmp_path, 3).listen(3128).close()
    assert refused_code(lambda: UnixStandIn(tmp_path, 16).connect(3, 3128, 5)) == "vsock.connect.refused"


def test_stand_in_names_a_missing_directory(tmp_path: Path) -> None:
    transport = UnixStandIn(tmp_path / "absent", 3)
    assert refused_code(lambda: transport.listen(1)) == "vsock.listen.failed"


def test_stand_in_refuses_a_path_that_the_kernel_would_cut(tmp_path: Path) -> None:
    transport = UnixStandIn(tmp_path / ("x" * 120), 3)
    assert refused_code(lambda: transport.listen(1)) == "vsock.directory.long"


def test_peer_without_a_name_has_no_cid(tmp_path: Path) -> None:
    parent = UnixStandIn(tmp_path, 3)
    with parent.listen(3128) as listener, socket.socket(socket.AF_UNIX) as anonymous:
        anonymous.connect(str(tmp_path / "3_3128.sock"))
        far, _ = listener.accept()
        with far:
            assert parent.peer_cid(far) is None


def test_connects_under_the_event_loop_when_the_backlog_frees(tmp_path: Path) -> None:
    parent, enclave = UnixStandIn(tmp_path, 3), UnixStandIn(tmp_path, 16)

    async def run() -> None:
        waiting = [asyncio.create_task(connect_async(enclave, 3, 3128, 30)) for _ in range(4)]
        for _ in waiting:
            accepted, _ = await asyncio.to_thread(listener.accept)
            accepted.close()
        for sock in await asyncio.gather(*waiting):
            sock.close()

    with parent.listen(3128, backlog=0) as listener:
        asyncio.run(run())


def test_full_backlog_times_out_under_the_event_loop(tmp_path: Path) -> None:
    held = []

    async def run() -> None:
        while True:
            held.append(await connect_async(UnixStandIn(tmp_path, 16), 3, 3128, 0.05))

    with UnixStandIn(tmp_path, 3).listen(3128, backlog=0), pytest.raises(UnavailableError) as caught:
        asyncio.run(run())
    for sock in held:
        sock.close()
    assert caught.value.code == "vsock.connect.timeout"


# AF_VSOCK, never opened here: the peer behind a real CID is not ours


class FakeSocket:
    made: list["FakeSocket"]
    failure: OSError | None = None

    def __init__(self, family: int, kind: int) -> None:
        assert (family, kind) == (socket.AF_VSOCK, socket.SOCK_STREAM)
        self.calls: list[tuple[Any, ...]] = []
        self.closed = False
        FakeSocket.made.append(self)

    def settimeout(self, timeout: float) -> None:
        self.calls.append(("settimeout", timeout))

    def connect(self, address: tuple[int, int]) -> None:
        self.calls.append(("connect", address))
        if FakeSocket.failure:
            raise FakeSocket.failure

    def bind(self, address: tuple[int, int]) -> None:
        self.calls.append(("bind", address))
        if FakeSocket.failure:
            raise FakeSocket.failure

    def listen(self, backlog: int) -> None:
        self.calls.append(("listen", backlog))

    def getsockname(self) -> tuple[int, int]:
        return (socket.VMADDR_CID_ANY, 3128)

    def getpeername(self) -> tuple[int, int]:
        return (16, 40_000)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeSocket]:
    FakeSocket.made = []
    FakeSocket.failure = None
    monkeypatch.setattr("enclave.vsock.transport.socket.socket", FakeSocket)
    return FakeSocket


def test_vsock_connects_to_cid_and_port(fake: type[FakeSocket]) -> None:
    AfVsock().connect(3, 3128, 7)
    assert fake.made[0].calls == [("settimeout", 7), ("connect", (3, 3128))]


def test_vsock_listens_for_every_cid(fake: type[FakeSocket]) -> None:
    transport = AfVsock()
    listener = transport.listen(3128, 9)
    assert fake.made[0].calls == [("bind", (socket.VMADDR_CID_ANY, 3128)), ("listen", 9)]
    assert transport.local_port(listener) == 3128
    transport.close_listener(listener)
    assert fake.made[0].closed


def test_vsock_port_zero_is_any_port(fake: type[FakeSocket]) -> None:
    AfVsock().listen(0)
    assert fake.made[0].calls[0] == ("bind", (socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))


def test_vsock_tells_the_peers_cid(fake: type[FakeSocket]) -> None:
    assert AfVsock().peer_cid(fake(socket.AF_VSOCK, socket.SOCK_STREAM)) == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ECONNREFUSED, "vsock.connect.refused"),
        (errno.ECONNRESET, "vsock.connect.refused"),
        (errno.ETIMEDOUT, "vsock.connect.timeout"),
        (errno.ENODEV, "vsock.connect.failed"),
    ],
)
def test_vsock_connect_failures_have_codes(fake: type[FakeSocket], number: int, code: str) -> None:
    fake.failure = OSError(number, "no")
    assert refused_code(lambda: AfVsock().connect(3, 3128, 7)) == code
    assert fake.made[0].closed


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EADDRINUSE, "vsock.listen.in_use"), (errno.EACCES, "vsock.listen.failed")],
)
def test_vsock_listen_failures_have_codes(fake: type[FakeSocket], number: int, code: str) -> None:
    fake.failure = OSError(number, "no")
    assert refused_code(lambda: AfVsock().listen(3128)) == code
    assert fake.made[0].closed
