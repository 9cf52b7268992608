"""The configuration file, over its defaults."""

from pathlib import Path

import pytest

from enclave.agent.config import AgentConfig
from shared.errors import ConfigError
from tests.shared.refusal import refuses

UPSTREAMS = b'{"default":{"core":{"data_disks":["/","/var/volatile/dstack/persistent"]}}}'


def load(path: Path, content: bytes) -> AgentConfig:
    file = path / "agent.conf"
    file.write_bytes(content)
    return AgentConfig.load(file)


def test_the_defaults_are_upstreams() -> None:
    config = AgentConfig.load(None)
    assert config.core.keys_file == "/dstack/.host-shared/.appkeys.json"
    assert config.internal.unix_path() == "/var/run/dstack/dstack.sock"
    assert config.internal_v0.unix_path() == "/var/run/dstack/tappd.sock"
    assert (config.external.address, config.external.port) == ("0.0.0.0", 8090)
    assert (config.guest_api.address, config.guest_api.port) == ("vsock:0xffffffff", 8000)


def test_the_file_that_a_guests_boot_writes_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, UPSTREAMS)
    assert config.core.data_disks == ("/", "/var/volatile/dstack/persistent")
    assert config.core.compose_file == AgentConfig().core.compose_file


def test_toml_is_read_over_the_defaults(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        b'[external]\nport = 9\n[internal-v0]\naddress = "unix:/t.sock"\n[default]\nworkers = 8\n'
        b'[default.core]\nquote_without_tdx = "attestation"\n[default.limits]\nSign = 5\n',
    )
    assert (config.external.address, config.external.port) == ("0.0.0.0", 9)
    assert config.internal_v0.unix_path() == "/t.sock"
    assert config.core.quote_without_tdx == "attestation"
    assert config.default.limits == {"Sign": 5}


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with refuses("agent.config.unreadable", ConfigError):
        AgentConfig.load(tmp_path / "nothing")


def test_refuses_a_large_file(tmp_path: Path) -> None:
    with refuses("agent.config.size", ConfigError):
        load(tmp_path, b" " * ((1 << 20) + 1))


@pytest.mark.parametrize("content", [b"{", b"x = ", b"\xff", b"{" * 100])
def test_refuses_what_is_neither_toml_nor_json(content: bytes, tmp_path: Path) -> None:
    with refuses("agent.config.syntax", ConfigError):
        load(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"[external]\nport = 65536\n",
        b'[external]\nport = "8090"\n',
        b"external = 5\n",
        b'[default.core]\nquote_without_tdx = "perhaps"\n',
        b"[default.limits]\nSign = -1\n",
    ],
)
def test_refuses_a_value_that_does_not_fit(content: bytes, tmp_path: Path) -> None:
    with refuses("agent.config.field", ConfigError):
        load(tmp_path, content)
