"""A guest and a gateway that have their certificates from one KMS (spec deploy 6.1, 6.3 step 14)."""

import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enclave.devices.clock import SystemClock
from enclave.dstack_util.gateway_cache import CACHE_PATH
from enclave.dstack_util.gateway_checker import GatewayChecker
from enclave.dstack_util.machine import Completed
from enclave.dstack_util.main import run
from enclave.dstack_util.tools import Tools
from enclave.dstack_util.tunnel import CONFIG_PATH
from enclave.kms.authorization import Decision
from shared.keys.app_keys_file import parse_app_keys
from tests.enclave.conftest import Policy
from tests.enclave.dstack_util.gateway_world import (
    GATEWAY_ID,
    OTHER_ID,
    SimulatedGateway,
    certified,
    refusing,
    served_gateway,
)
from tests.enclave.dstack_util.gcp_world import BootingGuest, ServedKms, served_kms, start
from tests.enclave.gcp import GUEST_APP_ID, NOW, Machines

SHOW = ("wg", "show", "dstack-wg0")


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _self: NOW)
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", "")  # set by the commands, and put back after the test


class World:
    """A KMS that says who the gateway of its apps is, and guests that boot."""

    def __init__(self, gcp: Machines, policy: Policy, directory: Path, kms: ServedKms) -> None:
        self.gcp = gcp
        self.kms = kms
        self._policy = policy
        self._directory = directory
        self.name_gateway(GATEWAY_ID.hex())

    def name_gateway(self, gateway_app_id: str) -> None:
        """Have the contract name this gateway."""
        self._policy.app = Decision(
            is_allowed=True, reason="", gateway_app_id=gateway_app_id, finalized_block=7
        )

    def start(self, *urls: str, **compose: Any) -> BootingGuest:
        """Start a guest that wants a gateway, before its setup."""
        guest = start(
            self.gcp,
            self._directory / "disk",
            kms=self.kms,
            sys_config={"gateway_urls": urls},
            **{"gateway_enabled": True, **compose},
        )
        guest.machine.answers[SHOW] = Completed(1)
        return guest


@pytest.fixture
def world(gcp: Machines, policy: Policy, tmp_path: Path) -> Iterator[World]:
    with served_kms(gcp, policy, tmp_path) as kms:
        yield World(gcp, policy, tmp_path, kms)


@pytest.fixture
def gateway(world: World) -> Iterator[tuple[SimulatedGateway, str]]:
    with served_gateway(certified(world.gcp, world.kms), world.kms.root_pem) as served:
        yield served


def _command(guest: BootingGuest, *argv: str) -> int:
    tools = Tools(guest.platform, machine=guest.machine, stdout=io.BytesIO())
    return run([*argv, "--work-dir", str(guest.work)], tools)


def _config(guest: BootingGuest) -> str:
    return guest.machine.path(CONFIG_PATH).read_text()


def _errors(guest: BootingGuest) -> list[str]:
    return [
        payload.rpartition("[")[2].rstrip("]") for event, payload in guest.host.told if event == "boot.error"
    ]


def _code(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rstrip().rpartition("[")[2].rstrip("]")


def test_a_boot_ends_with_a_tunnel(world: World, gateway: tuple[SimulatedGateway, str]) -> None:
    served, url = gateway
    guest = world.start(url)
    guest.setup()
    assert _errors(guest) == []
    assert guest.host.told[-1] == ("boot.progress", "setting up dstack-gateway")
    assert "Address = 10.0.0.2/32" in _config(guest)
    assert guest.machine.words()[-1] == "wg-quick up"
    assert served.callers == [GUEST_APP_ID]
    assert (served.with_app_info, served.with_evidence) == ([True], [False])


def test_an_old_gateway_gets_evidence_from_the_kms_too(
    world: World, gateway: tuple[SimulatedGateway, str]
) -> None:
    served, url = gateway
    served.behave = lambda gateway, body: (
        gateway.register(body)
        if gateway.with_evidence[-1]
        else refusing(400, "no attestation provided")(gateway, body)
    )
    guest = world.start(url)
    guest.setup()
    assert served.with_evidence == [False, True]
    assert "Address = 10.0.0.2/32" in _config(guest)


def test_n74_neither_words_nor_prints_hold_a_key_of_the_gateway_client(
    world: World, gateway: tuple[SimulatedGateway, str], capsys: pytest.CaptureFixture[str]
) -> None:
    guest = world.start(gateway[1])
    guest.setup()
    cache = guest.machine.path(CACHE_PATH)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600
    kept = json.loads(cache.read_bytes())
    printed = capsys.readouterr()
    spoken = " ".join(" ".join(argv) for argv in guest.machine.argv) + printed.out + printed.err
    assert kept["wg_sk"] not in spoken
    assert "PRIVATE KEY" not in spoken


@pytest.mark.parametrize(
    ("named", "code"),
    [("", "gateway.app_id"), ("gateway", "gateway.app_id"), (OTHER_ID.hex(), "peer.app_id")],
)
def test_n76_another_gateway_than_the_kms_names_gets_nothing_and_the_boot_goes_on(
    world: World, gateway: tuple[SimulatedGateway, str], named: str, code: str
) -> None:
    served, url = gateway
    world.name_gateway(named)
    guest = world.start(url)
    guest.setup()
    assert _errors(guest) == [code]
    assert served.asked == []
    assert not guest.machine.path(CONFIG_PATH).exists()


def test_n76_the_hosts_keys_file_does_not_name_the_gateway(
    world: World, gateway: tuple[SimulatedGateway, str]
) -> None:
    guest = world.start(gateway[1])
    (guest.share / ".appkeys.json").write_text('{"gateway_app_id":"any"}')
    guest.setup()
    assert parse_app_keys(guest.file(".appkeys.json")).gateway_app_id == GATEWAY_ID.hex()


def test_n76_any_is_said_when_the_keys_say_it(
    world: World, gateway: tuple[SimulatedGateway, str], capsys: pytest.CaptureFixture[str]
) -> None:
    guest = world.start(gateway[1])
    guest.setup()
    path = guest.work / ".host-shared/.appkeys.json"
    keys = msgspec.structs.replace(parse_app_keys(path.read_bytes()), gateway_app_id="any")
    path.write_bytes(keys.to_json())
    capsys.readouterr()
    assert _command(guest, "gateway-refresh") == 0
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert events == ["gateway.unchecked", "gateway.registered", "gateway.tunnel"]


def test_a_boot_without_a_url_goes_on(world: World) -> None:
    guest = world.start()
    guest.setup()
    assert _errors(guest) == ["gateway.urls"]


def test_a_tool_that_fails_does_not_stop_a_boot(world: World, gateway: tuple[SimulatedGateway, str]) -> None:
    guest = world.start(gateway[1])
    guest.machine.answers["wg-quick",] = Completed(1, stderr=b"no such device")
    guest.setup()
    assert _errors(guest) == ["setup.command"]
    assert dict(guest.events())["system-ready"] == b""


def test_an_app_that_wants_no_gateway_asks_none(world: World, gateway: tuple[SimulatedGateway, str]) -> None:
    guest = world.start(gateway[1], gateway_enabled=False)
    guest.setup()
    assert gateway[0].asked == []
    assert _errors(guest) == []


def test_refreshing_asks_the_gateway_alone_and_leaves_the_tunnel(
    world: World, gateway: tuple[SimulatedGateway, str]
) -> None:
    served, url = gateway
    guest = world.start(url)
    guest.setup()
    asked = len(world.kms.policy.asked)
    guest.machine.answers[SHOW] = Completed(0)
    guest.machine.argv.clear()
    assert _command(guest, "gateway-refresh") == 0
    assert served.asked[0] == served.asked[1]
    assert len(world.kms.policy.asked) == asked
    assert "wg-quick up" not in guest.machine.words()


def test_a_forced_refresh_makes_the_tunnel_anew(world: World, gateway: tuple[SimulatedGateway, str]) -> None:
    guest = world.start(gateway[1])
    guest.setup()
    guest.machine.answers[SHOW] = Completed(0)
    guest.machine.argv.clear()
    assert _command(guest, "gateway-refresh", "--force") == 0
    assert guest.machine.words()[-2:] == ["ip link", "wg-quick up"]


def test_a_refresh_that_fails_ends_with_one(
    world: World, gateway: tuple[SimulatedGateway, str], capsys: pytest.CaptureFixture[str]
) -> None:
    served, url = gateway
    guest = world.start(url)
    guest.setup()
    served.behave = refusing(400, "app is not allowed")
    assert _command(guest, "gateway-refresh") == 1
    assert _code(capsys) == "gateway.refused"


@pytest.mark.parametrize(
    ("named", "urls", "compose", "code"),
    [
        ("", ["https://g"], {}, "gateway.app_id"),
        (GATEWAY_ID.hex(), [], {}, "gateway.urls"),
        (GATEWAY_ID.hex(), ["http://g"], {}, "gateway.url"),
        (GATEWAY_ID.hex(), ["https://g"], {"gateway_enabled": False}, "gateway.disabled"),
    ],
)
def test_the_checker_ends_with_three_where_trying_again_would_not_help(
    world: World, capsys, named: str, urls: list[str], compose: dict[str, Any], code: str
) -> None:
    world.name_gateway(named)
    guest = world.start(*urls, **compose)
    guest.setup()
    assert _command(guest, "gateway-checker") == 3
    assert _code(capsys) == code
    assert _command(guest, "gateway-refresh") == 1
    assert _code(capsys) == code


def test_the_checker_registers_as_refreshing_does(
    world: World, gateway: tuple[SimulatedGateway, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, url = gateway
    guest = world.start(url)
    guest.setup()
    monkeypatch.setattr(GatewayChecker, "run", lambda checker: checker._register(True))
    _command(guest, "gateway-checker")
    assert served.asked[0] == served.asked[1]


def test_a_guest_before_its_boot_has_no_identity(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    guest = world.start("https://g")
    guest.setup()
    other = world.start("https://g")
    other.work.mkdir(exist_ok=True)
    (other.work / ".host-shared").mkdir()
    for name in ("app-compose.json", ".sys-config.json", ".appkeys.json"):
        (other.work / ".host-shared" / name).write_bytes(guest.file(name))
    assert _command(other, "gateway-refresh") == 1
    assert _code(capsys) == "gateway.identity"
