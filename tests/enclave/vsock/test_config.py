"""The forwarder's configuration: what is accepted, and each refusal's code."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enclave.vsock.config import DEFAULT_PORTS, TcpAddress, load_config, parse_config
from enclave.vsock.transport import AfVsock, UnixStandIn, VsockAddress
from shared.errors import ConfigError

FULL = """
transport = "unix"
directory = "/run/vsock"
cid = 3

[limits]
connections = 5
idle_seconds = 1.5

[[inbound]]
name = "kms"
listen = "0.0.0.0:12001"
target = "vsock://16:8000"
connections = 2

[[outbound]]
name = "egress"
listen = 3128
peers = [16]
allow = [
  { host = "kms.example.com", ports = [12001] },
  { host = "rpc.example.com" },
  { host = "10.0.0.1", ports = [8545] },
]

[[bridge]]
name = "proxy"
listen = "[::1]:0"
target = "vsock://3:3128"
"""

INBOUND = '[[inbound]]\nname = "a"\nlisten = "{}"\ntarget = "{}"\n'
OUTBOUND = '[[outbound]]\nname = "a"\nlisten = 1\nallow = [{{ host = "{}" }}]\n'


def refused_code(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return caught.value.code


def test_reads_every_rule() -> None:
    config = parse_config(FULL)
    assert config.limits.connections == 5
    assert config.inbound[0].target_address == VsockAddress(16, 8000)
    assert config.inbound[0].listen_address == TcpAddress("0.0.0.0", 12001)
    assert config.bridge[0].listen_address == TcpAddress("::1", 0)
    assert isinstance(config.open_transport(), UnixStandIn)


def test_vsock_is_the_default() -> None:
    assert isinstance(parse_config(INBOUND.format("0.0.0.0:1", "vsock://16:1")).open_transport(), AfVsock)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("kms.example.com", 12001),
        ("KMS.Example.COM", 12001),
        ("rpc.example.com", DEFAULT_PORTS[0]),
        ("rpc.example.com", DEFAULT_PORTS[1]),
        ("10.0.0.1", 8545),
    ],
)
def test_allows_what_is_listed(host: str, port: int) -> None:
    assert parse_config(FULL).outbound[0].allows(host, port)


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("kms.example.com", 443),
        ("kms.example.com.", 12001),
        ("evil.kms.example.com", 12001),
        ("example.com", 443),
        ("rpc.example.com", 22),
        ("10.0.0.2", 8545),
        ("167772161", 8545),  # 10.0.0.1 in another spelling
        ("010.0.0.1", 8545),
        ("::ffff:10.0.0.1", 8545),
        ("127.0.0.1", 443),
    ],
)
def test_denies_what_is_not_listed(host: str, port: int) -> None:
    assert not parse_config(FULL).outbound[0].allows(host, port)


def test_n59_empty_allow_list_denies_everything() -> None:
    config = parse_config('[[outbound]]\nname = "a"\nlisten = 1\n')
    assert not config.outbound[0].allows("localhost", 443)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "forwarder.config.empty"),
        ("not toml", "forwarder.config.invalid"),
        ("unknown = 1\n", "forwarder.config.invalid"),
        ("unknown = " + "9" * 5000, "forwarder.config.invalid"),
        (FULL.replace("connections = 5", "connections = 0"), "forwarder.config.invalid"),
        (FULL.replace("connections = 5", "conections = 5"), "forwarder.config.invalid"),
        (FULL.replace("ports = [12001]", "ports = []"), "forwarder.config.invalid"),
        (FULL.replace("ports = [12001]", "ports = [65536]"), "forwarder.config.invalid"),
        (FULL.replace("ports = [12001]", "port = 1"), "forwarder.config.invalid"),
        (FULL.replace('name = "kms"', 'name = "K M S"'), "forwarder.config.invalid"),
        (FULL.replace('"unix"', '"tcp"'), "forwarder.config.invalid"),
        (FULL.replace("cid = 3", ""), "forwarder.config.unix"),
        (FULL.replace('"unix"', '"vsock"'), "forwarder.config.unix"),
        (FULL.replace('"egress"', '"kms"'), "forwarder.config.name"),
        (INBOUND.format("localhost:1", "vsock://16:1"), "forwarder.config.listen"),
        (INBOUND.format("0.0.0.0:65536", "vsock://16:1"), "forwarder.config.listen"),
        (INBOUND.format("0.0.0.0", "vsock://16:1"), "forwarder.config.listen"),
        (INBOUND.format("0.0.0.0:1", "16:1"), "vsock.address.malformed"),
        (FULL.replace("[::1]:0", "0.0.0.0:3128"), "forwarder.config.bridge"),
    ],
)
def test_refuses_wrong_configurations(text: str, code: str) -> None:
    assert refused_code(text) == code


@pytest.mark.parametrize(
    "host",
    ["*", "*.example.com", "Example.com", "example.com.", "", "a..b", "127.1", "0x7f.0x1", "2130706433",
     "010.0.0.1", "[::1]", "::0001", "a b", "a" * 64, "-a", "kms.example.com:443", "a/b", "\u00e9.com"],
)  # fmt: skip
def test_refuses_hosts_that_are_no_exact_name(host: str) -> None:
    assert refused_code(OUTBOUND.format(host)) == "forwarder.config.host"


@pytest.mark.parametrize("host", ["localhost", "a-b.example", "_dns.example", "::1", "10.0.0.1"])
def test_accepts_exact_names_and_addresses(host: str) -> None:
    assert parse_config(OUTBOUND.format(host)).outbound[0].allow[0].host == host


def test_unreadable_file_has_a_code(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "absent.toml")
    assert caught.value.code == "forwarder.config.unreadable"


def test_file_that_is_no_text_has_a_code(tmp_path: Path) -> None:
    path = tmp_path / "forwarder.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.code == "forwarder.config.unreadable"


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_our_error(text: str) -> None:
    code = "forwarder.config."
    try:
        parse_config(text)
    except ConfigError as error:
        code = error.code
    assert code.startswith(("forwarder.config.", "vsock.address."))
