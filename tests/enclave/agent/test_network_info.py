"""What the kernel says of a network, less what is the app's own (spec guest-agent section 2.12)."""

import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from enclave.agent import network_info
from enclave.agent.network_info import Address, NetworkReader, interface_addresses, parse_addresses, wireguard
from shared.errors import UnavailableError
from shared.rpc import guest_api_pb2 as pb
from tests.enclave.agent.machines import lay_machine

ADDRESSES = (Address(1, "127.0.0.1", 8), Address(2, "10.0.2.15", 24), Address(2, "fe80::1", 64))


def read(root: Path, addresses: Sequence[Address] = ADDRESSES) -> pb.NetworkInformation:
    return NetworkReader(root=root, addresses=lambda: addresses, wg=lambda: "interface: dstack-wg0").read()


def test_reads_a_network(tmp_path: Path) -> None:
    found = read(lay_machine(tmp_path))
    assert list(found.dns_servers) == ["10.0.2.3", "fd00::3"]
    assert [one.address for one in found.gateways] == ["10.0.2.2", "fe80::2"]
    assert found.wg_info == "interface: dstack-wg0"


def test_tells_of_the_interfaces_that_upstream_tells_of(tmp_path: Path) -> None:
    found = read(lay_machine(tmp_path)).interfaces
    assert [one.name for one in found] == ["dstack-wg0", "enp0s1", "eth0"]
    eth0 = found[2]
    assert [(one.address, one.prefix) for one in eth0.addresses] == [("10.0.2.15", 24), ("fe80::1", 64)]
    assert (eth0.rx_bytes, eth0.tx_bytes, eth0.rx_errors, eth0.tx_errors) == (2000, 2001, 2002, 2003)


def test_a_network_that_says_nothing_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path) == pb.NetworkInformation(wg_info="interface: dstack-wg0")


def test_reads_over_what_no_kernel_writes(tmp_path: Path) -> None:
    junk = {
        "proc/net/route": (
            "Iface\neth0 00000000 zz 0003 0 0 0 00000000\neth0 00000000 -1020304 3 0 0 0 00000000\nx\n"
        ),
        "proc/net/ipv6_route": "0\n" + "0" * 32 + " 00 0 0 zz 0 0 0 0\n",
    }
    assert [one.address for one in read(lay_machine(tmp_path, junk)).gateways] == ["0.0.0.0"]


def test_a_wg_that_fails_leaves_its_error(tmp_path: Path) -> None:
    def fails() -> str:
        raise UnavailableError("agent.command.missing", "cannot run wg: No such file or directory")

    found = NetworkReader(root=lay_machine(tmp_path), addresses=lambda: (), wg=fails).read()
    assert found.wg_info == "cannot run wg: No such file or directory"


def test_a_kernel_that_tells_no_addresses_leaves_no_interfaces(tmp_path: Path) -> None:
    def fails() -> Sequence[Address]:
        raise OSError

    assert not NetworkReader(root=lay_machine(tmp_path), addresses=fails, wg=str).read().interfaces


def test_asks_wg_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(network_info, "command_output", lambda *argv, seconds: asked.append((argv, seconds)))
    wireguard()
    assert asked == [(("wg",), 5.0)]


def _message(kind: int, body: bytes) -> bytes:
    whole = struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body
    return whole + bytes(-len(whole) % 4)


def _attribute(kind: int, value: bytes) -> bytes:
    whole = struct.pack("=HH", 4 + len(value), kind) + value
    return whole + bytes(-len(whole) % 4)


def test_reads_the_kernels_answer() -> None:
    v4 = struct.pack("=BBBBI", socket.AF_INET, 24, 0, 0, 2)
    v4 += _attribute(1, b"\x0a\0\x02\1") + _attribute(2, b"\x0a\0\2\x0f") + _attribute(3, b"eth0\0")
    v6 = struct.pack("=BBBBI", socket.AF_INET6, 64, 0, 0, 3) + _attribute(
        1, bytes([0xFE, 0x80, *bytes(13), 9])
    )
    other = struct.pack("=BBBBI", 99, 0, 0, 0, 3) + _attribute(1, b"....")
    dump = _message(20, v4) + _message(20, v6) + _message(20, other)
    expected = [Address(2, "10.0.2.15", 24), Address(3, "fe80::9", 64)]
    assert parse_addresses(dump) == (expected, False)
    assert parse_addresses(dump + _message(3, bytes(4))) == (expected, True)


@pytest.mark.parametrize("dump", [struct.pack("=IHHII", 0, 20, 0, 0, 0), _message(2, bytes(4))])
def test_an_answer_without_an_end_is_ended(dump: bytes) -> None:
    assert parse_addresses(dump) == ([], True)


def test_the_kernel_that_the_tests_run_on_answers() -> None:
    known = {index for index, _ in socket.if_nameindex()}
    for one in interface_addresses():
        assert one.interface in known
        assert one.prefix <= ipaddress.ip_address(one.address).max_prefixlen
