"""The kernel's TPM node, stood in for by one end of a socket pair."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave.devices.tpm_device import MAX_COMMAND, DevTpm
from shared.errors import DstackError, ProtocolError, UnavailableError


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, socket.socket]]:
    """A path whose opening gives a socket, and the socket's other end: the driver's."""
    ours, drivers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = tmp_path / "tpmrm0"
    path.touch()
    plain = os.open

    def opened(name: str, flags: int, mode: int = 0o777) -> int:
        return os.dup(ours.fileno()) if name == str(path) else plain(name, flags, mode)

    monkeypatch.setattr(os, "open", opened)
    with ours, drivers:
        yield str(path), drivers


def refused(device: DevTpm, command: bytes = b"x") -> DstackError:
    with pytest.raises(DstackError) as caught:
        device.transact(command)
    return caught.value


def test_passes_command_and_response(node: tuple[str, socket.socket]) -> None:
    path, driver = node
    driver.send(b"response")
    assert DevTpm([path]).transact(b"command") == b"response"
    assert driver.recv(100) == b"command"


def test_stays_open_for_the_objects_it_loaded(
    node: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, driver = node
    device = DevTpm([path])
    driver.send(b"1")
    device.transact(b"a")

    def fails(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(os, "open", fails)
    driver.send(b"2")
    assert device.transact(b"b") == b"2"


def test_prefers_the_resource_manager_and_falls_back(node: tuple[str, socket.socket], tmp_path: Path) -> None:
    path, driver = node
    driver.send(b"response")
    assert DevTpm([str(tmp_path / "absent"), path]).transact(b"x") == b"response"


def test_reports_a_machine_without_a_tpm(tmp_path: Path) -> None:
    caught = refused(DevTpm([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert (caught.code, type(caught)) == ("tpm_device.absent", UnavailableError)


def test_reports_a_node_that_cannot_be_opened(tmp_path: Path) -> None:
    assert refused(DevTpm([str(tmp_path)])).code == "tpm_device.open"


def test_reports_a_failing_driver(tmp_path: Path) -> None:
    path = tmp_path / "null"
    path.symlink_to("/dev/full")  # every write fails
    assert refused(DevTpm([str(path)])).code == "tpm_device.io"


def test_begins_anew_after_a_failure(
    node: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objects of the descriptor go with it."""
    path, driver = node
    device = DevTpm([path])
    used: list[int] = []

    def fails(descriptor: int, _size: int) -> bytes:
        used.append(descriptor)
        raise OSError(errno.ETIME, "timer expired")

    with monkeypatch.context() as broken:
        broken.setattr(os, "read", fails)
        assert refused(device).code == "tpm_device.io"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(used[0])
    driver.send(b"response")
    assert device.transact(b"x") == b"response"


def test_reports_a_driver_that_takes_half_a_command(
    node: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, driver = node
    driver.send(b"response")
    monkeypatch.setattr(os, "write", lambda _descriptor, _data: 1)
    assert refused(DevTpm([path]), b"xy").code == "tpm_device.io"


def test_refuses_an_oversize_command_before_the_driver(tmp_path: Path) -> None:
    caught = refused(DevTpm([str(tmp_path / "absent")]), bytes(MAX_COMMAND + 1))
    assert (caught.code, type(caught)) == ("tpm_device.command.size", ProtocolError)
