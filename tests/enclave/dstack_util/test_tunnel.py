"""The tunnel's interface: when it is made anew, and who reaches its port (spec deploy 6.3 step 14)."""

import stat
from pathlib import Path
from typing import Any

import pytest

from enclave.dstack_util.machine import Completed
from enclave.dstack_util.tunnel import CONFIG_PATH, bring_up, is_configured, latest_handshake
from enclave.dstack_util.wireguard import Tunnel, new_key, read_tunnel
from shared.errors import StorageError
from shared.rpc import gateway_pb2 as pb
from tests.enclave.dstack_util.gateway_world import NODE_KEYS
from tests.enclave.dstack_util.machine import RecordedMachine
from tests.shared.refusal import refuses

KEY = new_key()
SHOW = ("wg", "show", "dstack-wg0")


@pytest.fixture
def machine(tmp_path: Path) -> RecordedMachine:
    machine = RecordedMachine(tmp_path)
    machine.answers[SHOW] = Completed(1)
    return machine


def _tunnel(*endpoints: str, **fields: Any) -> Tunnel:
    servers = [
        pb.WireGuardPeer(pk=key, ip=f"10.0.{index}.1", endpoint=endpoint)
        for index, (key, endpoint) in enumerate(
            zip(NODE_KEYS, endpoints or ("203.0.113.5:51820",), strict=False)
        )
    ]
    wg = pb.WireGuardConfig(**{"client_ip": "10.0.0.2", "servers": servers, **fields})
    return read_tunnel(pb.RegisterCvmResponse(wg=wg), KEY)


def _is_up(machine: RecordedMachine) -> None:
    machine.answers[SHOW] = Completed(0)
    machine.argv.clear()
    machine.inputs.clear()


def test_closes_the_port_before_it_opens_it(machine: RecordedMachine) -> None:
    assert bring_up(machine, _tunnel(), KEY, force=False)
    assert machine.words() == ["wg show", "iptables-restore -w", "iptables -w", "wg-quick up"]


def test_n74_the_tunnels_key_is_in_a_file_for_root_and_in_no_words(machine: RecordedMachine) -> None:
    bring_up(machine, _tunnel(), KEY, force=False)
    path = machine.path(CONFIG_PATH)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY.private in path.read_text()
    assert KEY.private not in " ".join(" ".join(argv) for argv in machine.argv)


def test_an_interface_that_is_as_it_should_be_is_left_alone(machine: RecordedMachine) -> None:
    bring_up(machine, _tunnel(), KEY, force=False)
    _is_up(machine)
    assert not bring_up(machine, _tunnel(), KEY, force=False)
    assert "wg-quick up" not in machine.words()


@pytest.mark.parametrize(("address", "force"), [("10.0.0.3", False), ("10.0.0.2", True)])
def test_another_configuration_or_force_makes_it_anew(
    machine: RecordedMachine, address: str, *, force: bool
) -> None:
    bring_up(machine, _tunnel(), KEY, force=False)
    _is_up(machine)
    assert bring_up(machine, _tunnel(client_ip=address), KEY, force=force)
    assert machine.words()[-2:] == ["ip link", "wg-quick up"]
    assert f"Address = {address}/32" in machine.path(CONFIG_PATH).read_text()


def test_an_interface_that_is_gone_comes_back(machine: RecordedMachine) -> None:
    bring_up(machine, _tunnel(), KEY, force=False)
    assert bring_up(machine, _tunnel(), KEY, force=False)
    assert machine.words()[-1] == "wg-quick up"


def test_only_the_nodes_reach_the_port(machine: RecordedMachine) -> None:
    bring_up(machine, _tunnel("203.0.113.5:51820", "gw.example:1"), KEY, force=False)
    rules = machine.inputs[machine.words().index("iptables-restore -w")].decode().splitlines()
    assert rules == [
        "*filter",
        ":DSTACK_WG - [0:0]",
        "-A DSTACK_WG -s gw.example -j ACCEPT",
        "-A DSTACK_WG -s 203.0.113.5 -j ACCEPT",
        "-A DSTACK_WG -j DROP",
        "COMMIT",
    ]
    assert "--noflush" in machine.argv[1]


def test_nodes_of_ipv6_have_rules_of_their_own(machine: RecordedMachine) -> None:
    machine.tools.add("ip6tables-restore")
    bring_up(machine, _tunnel("203.0.113.5:51820", "[2001:db8::5]:51820"), KEY, force=False)
    restored = {
        argv[0]: text
        for argv, text in zip(machine.argv, machine.inputs, strict=True)
        if "-restore" in argv[0]
    }
    assert b"203.0.113.5" in restored["iptables-restore"]
    assert b"2001:db8" not in restored["iptables-restore"]
    assert b"-s 2001:db8::5 -j ACCEPT" in restored["ip6tables-restore"]


def test_the_jump_to_the_chain_is_added_once(machine: RecordedMachine) -> None:
    machine.answers["iptables", "-w", "-C"] = Completed(1)
    bring_up(machine, _tunnel(), KEY, force=False)
    jump = ("INPUT", "-p", "udp", "--dport", "9182", "-j", "DSTACK_WG")
    assert ("iptables", "-w", "-I", *jump) in machine.argv
    machine.answers["iptables", "-w", "-C"] = Completed(0)
    machine.argv.clear()
    bring_up(machine, _tunnel(), KEY, force=False)
    assert ("iptables", "-w", "-I", *jump) not in machine.argv


def test_a_firewall_that_cannot_be_set_opens_nothing(machine: RecordedMachine) -> None:
    machine.answers["iptables-restore",] = Completed(2)
    with refuses("setup.command", StorageError):
        bring_up(machine, _tunnel(), KEY, force=False)
    assert not is_configured(machine)
    assert "wg-quick up" not in machine.words()


def test_a_configuration_that_cannot_be_read_is_said(machine: RecordedMachine) -> None:
    machine.path(CONFIG_PATH).mkdir(parents=True)
    _is_up(machine)
    with refuses("setup.unreadable", StorageError):
        bring_up(machine, _tunnel(), KEY, force=False)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (0, b"a=\t1700000000\nb=\t1700000200\n", 1_700_000_200),
        (0, b"a=\t0\n", 0),
        (0, b"", 0),
        (0, b"nonsense\na\tb\n", 0),
        (0, b"a=\t" + b"9" * 4301, 0),
        (1, b"a=\t1700000000\n", 0),
    ],
)
def test_the_latest_handshake_is_that_of_any_node(
    machine: RecordedMachine, code: int, text: bytes, expected: int
) -> None:
    machine.answers[(*SHOW, "latest-handshakes")] = Completed(code, text)
    assert latest_handshake(machine) == expected
