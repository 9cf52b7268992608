"""`[boot]`, its account and the rules of its network."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from enclave.init.account import Account, find_account
from enclave.init.services import forwarder_config
from enclave.init.settings import Boot, Port
from enclave.platform import Platform
from shared.errors import ConfigError
from tests.shared.refusal import refuses

BOOT = Boot(command=("/bin/app",))
SIGNER = "ab" * 32


def test_takes_a_whole_section() -> None:
    boot = Boot(
        command=("/bin/app", "--serve"),
        allowed_envs=("TOKEN",),
        env_signer=SIGNER,
        env_min_version=2,
        ports=(Port(listen=443, target="127.0.0.1:8443"),),
    )
    boot.check()
    policy = boot.env_policy()
    assert (policy.allowed, policy.env_signer.hex(), policy.min_version) == (frozenset({"TOKEN"}), SIGNER, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"command": ()},
        {"command": ("app",)},
        {"command": ("/bin/app", "a\0b")},
        {"directory": "relative"},
        {"env_signer": SIGNER},
        {"env_signer": "abcd", "allowed_envs": ("A",)},
        {"ports": (Port(listen=443, target="10.0.0.1:8443"),)},
        {"ports": (Port(listen=443, target="localhost:8443"),)},
        {"ports": (Port(listen=443, target="127.0.0.1:0"),)},
        {"ports": (Port(listen=443, target="127.0.0.1:65536"),)},
        {"ports": (Port(listen=443, target="127.0.0.999:1"),)},
    ],
)
def test_refuses_what_makes_no_sense(changes: dict[str, Any]) -> None:
    with refuses("init.config", ConfigError):
        msgspec.structs.replace(BOOT, **changes).check()


def test_refuses_an_unknown_key() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"command": ["/a"], "environment": {}}, Boot)


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbroken:x:y:1::/:/bin/sh\nshort:x:7\napp:x:1000:2000::/home/app:/bin/sh\n"
    )
    return Platform(image=tmp_path, writable=tmp_path, tee=cast("Any", None))


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", None),
        ("app", Account(1000, 2000, "/home/app")),
        ("1000", Account(1000, 1000)),
        ("1000:5", Account(1000, 5)),
    ],
)
def test_finds_the_account_in_the_image(platform: Platform, user: str, account: Account | None) -> None:
    assert find_account(platform, user) == account


@pytest.mark.parametrize(
    "user", ["nobody", "broken", "short", "a:b", "-1", "01", "4294967295", "1:4294967295", "a b", "../x"]
)
def test_refuses_a_user_that_the_image_does_not_name(platform: Platform, user: str) -> None:
    with refuses("init.user", ConfigError):
        find_account(platform, user)


def test_the_network_is_the_proxy_and_the_apps_ports() -> None:
    boot = msgspec.structs.replace(BOOT, ports=(Port(listen=443, target="127.0.0.1:8443"),))
    rules = forwarder_config(boot)
    assert rules is not None
    assert [(rule.listen, rule.target) for rule in rules.bridge] == [("127.0.0.1:3128", "vsock://3:3128")]
    assert [(rule.listen, rule.target) for rule in rules.ingress] == [(443, "127.0.0.1:8443")]


def test_without_a_proxy_and_ports_there_is_no_network() -> None:
    assert forwarder_config(msgspec.structs.replace(BOOT, proxy_port=0)) is None


def test_refuses_a_port_that_is_given_twice() -> None:
    twice = (Port(listen=443, target="127.0.0.1:1"), Port(listen=443, target="127.0.0.1:2"))
    with refuses("forwarder.config.name", ConfigError):
        forwarder_config(msgspec.structs.replace(BOOT, ports=twice))
