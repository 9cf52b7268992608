"""The messages of RegisterCvm have the fields of the specification (spec gateway section 1.3)."""

from shared.rpc import gateway_pb2 as pb
from shared.rpc.codec import to_json

FIELDS = {
    "PortAttrs": "1 port 2 pp",
    "PortPolicy": "1 ports 2 restrict_mode",
    "RegisterCvmRequest": "1 client_public_key 2 port_policy",
    "WireGuardPeer": "1 pk 2 ip 3 endpoint",
    "WireGuardConfig": "1 client_ip 2 servers",
    "GuestAgentConfig": "1 external_port 2 internal_port 3 domain 4 app_address_ns_prefix",
    "GatewayNodeInfo": "1 id 2 uuid 3 url 4 last_seen 5 wg_public_key 6 wg_ip 7 wg_endpoint",
    "RegisterCvmResponse": "1 wg 2 agent 3 gateways",
}


def test_fields_have_the_numbers_of_the_specification() -> None:
    found = {
        name: " ".join(f"{field.number} {field.name}" for field in message.fields)
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert found == FIELDS


def test_an_open_port_policy_is_told_from_none() -> None:
    assert (
        to_json(pb.RegisterCvmRequest(client_public_key="k"))
        == b'{"client_public_key":"k","port_policy":null}'
    )
    assert to_json(pb.RegisterCvmRequest(client_public_key="k", port_policy=pb.PortPolicy())) == (
        b'{"client_public_key":"k","port_policy":{"ports":[],"restrict_mode":false}}'
    )
