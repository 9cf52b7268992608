"""What a gateway assigns, read strictly: its words end in a file that `wg-quick` runs (spec gateway 1.2)."""

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.dstack_util.wireguard import MAX_SERVERS, Tunnel, key_of, new_key, read_tunnel
from shared.errors import ProtocolError
from shared.rpc import gateway_pb2 as pb
from shared.rpc.codec import from_json
from tests.enclave.dstack_util.gateway_world import NODE_KEYS, assigned
from tests.shared.refusal import refuses

ALICE = base64.b64encode(
    bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
).decode()  # RFC 7748 section 6.1
OWN = key_of(base64.b64encode(bytes(31) + b"\1").decode())

CONFIG = """[Interface]
PrivateKey = AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE=
ListenPort = 9182
Address = 10.0.0.2/32

[Peer]
PublicKey = 3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08=
AllowedIPs = 10.0.1.1/32
Endpoint = 203.0.113.6:51820
PersistentKeepalive = 25

[Peer]
PublicKey = hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=
AllowedIPs = 10.0.0.1/32
Endpoint = 203.0.113.5:51820
PersistentKeepalive = 25
"""


def _read(**changes: Any) -> Tunnel:
    wg = assigned(**changes)["wg"]
    servers = [pb.WireGuardPeer(**server) for server in wg["servers"]]
    answer = pb.RegisterCvmResponse(wg=pb.WireGuardConfig(client_ip=wg["client_ip"], servers=servers))
    return read_tunnel(answer, OWN)


def _node(**changes: str) -> list[dict[str, str]]:
    return [{"pk": NODE_KEYS[0], "ip": "10.0.0.1", "endpoint": "203.0.113.5:51820", **changes}]


def test_a_public_key_is_that_of_rfc_7748() -> None:
    assert key_of(ALICE).public == NODE_KEYS[0]


def test_two_keys_differ_and_show_nothing() -> None:
    one, other = new_key(), new_key()
    assert one.private != other.private
    assert one.private not in repr(one)
    assert key_of(one.private) == one


@pytest.mark.parametrize("text", ["", "A" * 44, NODE_KEYS[0][:-1], NODE_KEYS[0][:-2] + "p=", "\xe9" * 44])
def test_a_private_key_that_is_none_is_refused(text: str) -> None:
    with refuses("gateway.key", ProtocolError):
        key_of(text)


def test_writes_nodes_by_their_public_keys() -> None:
    assert _read().config(OWN).decode() == CONFIG


def test_takes_names_other_addresses_and_a_networks_length() -> None:
    for endpoint in ("gw-1.example.org:51820", "[2001:db8::5]:51820"):
        tunnel = _read(servers=_node(ip="10.0.0.1/24", endpoint=endpoint))
        assert f"Endpoint = {endpoint}\n".encode() in tunnel.config(OWN)
        assert b"AllowedIPs = 10.0.0.1/32\n" in tunnel.config(OWN)


@pytest.mark.parametrize(
    "changes",
    [
        {"servers": []},
        {"servers": _node() * (MAX_SERVERS + 1)},
        {"servers": _node() + _node(ip="10.0.0.9")},
        {"servers": _node() + _node(pk=NODE_KEYS[1])},
        {"servers": _node(ip="10.0.0.2")},
        {"servers": _node(pk=OWN.public)},
        {"servers": _node(pk="")},
        {"servers": _node(pk=NODE_KEYS[0] + "\nPostUp = id")},
        {"servers": _node(pk=NODE_KEYS[0][:-2] + "p=")},
        {"client_ip": ""},
        {"client_ip": "10.0.0.2/32\nPostUp = id"},
        {"client_ip": "10.0.0.2, 0.0.0.0"},
        {"client_ip": "fd00::2"},
        *({"client_ip": address} for address in ("127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255")),
        {"servers": _node(ip="169.254.169.254")},
        {"servers": _node(ip="10.0.0.1/33")},
        {"servers": _node(ip="0.0.0.0/0")},
        *(
            {"servers": _node(endpoint=endpoint)}
            for endpoint in (
                "",
                "203.0.113.5",
                "203.0.113.5:0",
                "203.0.113.5:65536",
                "203.0.113.5:51820\nPostUp = id",
                "203.0.113:51820",
                "[::1:51820",
                "[zz::]:51820",
                "[fe80::1%eth0]:51820",
                "-s:51820",
                "a..b:51820",
                "a.-b:51820",
                "$(id):51820",
                "a b:51820",
                f"{'a' * 254}:51820",
                "10.0.0.1:٣",
            )
        ),
    ],
)
def test_n76_refuses_what_would_be_more_than_an_address(changes: dict[str, Any]) -> None:
    with refuses("gateway.answer", ProtocolError):
        _read(**changes)


@given(
    st.dictionaries(
        st.sampled_from(["client_ip", "pk", "ip", "endpoint"]),
        st.text(max_size=60) | st.sampled_from(["10.0.0.7\nPostUp = id", "h:1\n[Peer]", NODE_KEYS[1], "a:1"]),
    )
)
def test_whatever_a_gateway_says_makes_no_line_of_its_own(words: dict[str, str]) -> None:
    client_ip = words.pop("client_ip", "10.0.0.2")
    with contextlib.suppress(ProtocolError):
        lines = _read(client_ip=client_ip, servers=_node(**words)).config(OWN).decode().split("\n")
        expected = [*CONFIG.split("\n")[:10], ""]
        assert [line.partition(" ")[0] for line in lines] == [line.partition(" ")[0] for line in expected]


def test_fields_that_are_not_used_may_be_anything_they_can_be() -> None:
    document = (
        b'{"wg":{"client_ip":"10.0.0.2","servers":[]},"gateways":[{"id":1,"uuid":"00","new":[]}],"x":1}'
    )
    assert from_json(pb.RegisterCvmResponse, document).gateways[0].uuid == b"\0"
