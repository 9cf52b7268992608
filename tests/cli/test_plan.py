"""`dstack-cloud plan` as its users meet it: against a development chain, and with a real image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from cli.main import cli
from cli.places import cache_path, config_path
from shared.chain.abi import checksum_address
from shared.chain.calldata import decode_call
from shared.errors import ConfigError, DstackError, UnavailableError
from tests.functions.plan.projects import write_os_image, write_project
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar
from tests.shared.refusal import refuses


class Site:
    """Contracts of our own on the session's chain, and whoever may change them."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.owner = Governance(chain.url, chain.accounts[8])
        self.kms = checksum_address(self.owner.deploy().kms)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--rpc", self.chain.url, "--kms-contract", self.kms)

    def carry_out(self, plan: dict[str, Any]) -> bytes:
        """Send a plan's calls as they are, and return the app id that the factory gave, if it was asked."""
        for call in plan["approval"]["calls"]:
            assert decode_call(bytes.fromhex(call["calldata"][2:]))[0].signature == call["function"]
            self.owner.settle(self.owner.send(_Raw(call)))
        return bytes.fromhex(plan["approval"]["new_app_id"])


class _Raw:
    """Calldata in the shape that the sender takes."""

    def __init__(self, call: dict[str, Any]) -> None:
        self._call = call

    def build_transaction(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return parameters | {"to": self._call["to"], "data": self._call["calldata"], "value": 0}


@pytest.fixture(scope="module")
def site(chain: Chain) -> Site:
    return Site(chain)


@pytest.fixture
def enclave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose enclave is built from a layout in its directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "absent.json"))
    place = tmp_path / "demo"
    boot = {"kernel": "kernel", "init": "init", "nsm_ko": "nsm.ko"}
    write_project(
        place,
        compose="services:\n  web:\n    image: web\n",
        platform="nitro",
        app_id=...,
        nitro_config={"image": "layout", **boot},
    )
    for name in boot.values():
        (place / name).write_bytes(f"{name} bytes".encode())
    # an image of its own, which no other test had allowed
    Layout(layer_tar(directory("etc"), file("app", str(place).encode(), mode=0o755))).write(place / "layout")
    return place


def run(place: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", "-C", str(place), *arguments])


def planned(place: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    result = run(place, "--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


def set_app_id(place: Path, app_id: bytes) -> None:
    document = json.loads((place / "app.json").read_text())
    (place / "app.json").write_text(json.dumps(document | {"app_id": app_id.hex()}))


def test_a_plans_calls_make_the_contracts_allow_it(site: Site, enclave: Path) -> None:
    code, plan = planned(enclave, *site.options)
    assert code == 5
    assert "name its owner" in plan["approval"]["blocked"][0]

    code, plan = planned(enclave, *site.options, "--app-owner", site.owner.address)
    assert code == 5
    assert [call["function"].partition("(")[0] for call in plan["approval"]["calls"]] == [
        *("addOsImageHash", "deployAndRegisterApp")
    ]
    app_id = site.carry_out(plan)
    set_app_id(enclave, app_id)

    code, plan = planned(enclave, *site.options)
    assert (code, plan["outcome"], plan["approval"]["calls"]) == (4, "changes", [])
    assert plan["chain"]["chain_id"] == 31337

    state = {
        "status": "RUNNING",
        "deployed": {"plan_id": plan["plan_id"], "app_id": app_id.hex()},
    }
    (enclave / "state.json").write_text(json.dumps(state))
    assert planned(enclave, *site.options)[0] == 0


def test_a_changed_image_needs_its_two_hashes(site: Site, enclave: Path) -> None:
    _, first = planned(enclave, *site.options, "--app-owner", site.owner.address)
    set_app_id(enclave, site.carry_out(first))
    (enclave / "init").write_bytes(b"another init")
    code, plan = planned(enclave, *site.options)
    assert code == 5
    calls = plan["approval"]["calls"]
    assert [call["function"] for call in calls] == ["addOsImageHash(bytes32)", "addComposeHash(bytes32)"]
    assert {call["sender"] for call in calls} == {site.owner.address}
    site.carry_out(plan)
    assert planned(enclave, *site.options)[0] == 4


def test_the_readable_plan_says_who_must_do_what(site: Site, enclave: Path) -> None:
    result = run(enclave, *site.options, "--app-owner", site.owner.address)
    assert result.exit_code == 5
    lines = result.output.splitlines()
    assert lines[0].startswith("demo on nitro, plan ")
    assert lines[-1].startswith("NEEDS APPROVAL")
    assert any(line.startswith("call 1: addOsImageHash(osImageHash=0x") for line in lines)
    assert any(line.strip().startswith("PCR0") for line in lines)
    assert any(line.strip().startswith("new app id") for line in lines)
    blocked = run(enclave, *site.options)
    assert "blocked: no app contract is at the app id" in blocked.output


def test_the_readable_plan_of_what_is_allowed(site: Site, enclave: Path) -> None:
    _, first = planned(enclave, *site.options, "--app-owner", site.owner.address)
    set_app_id(enclave, site.carry_out(first))
    result = run(enclave, *site.options)
    assert "allows this deployment" in result.output
    assert result.output.splitlines()[-1] == "CHANGES PENDING"


def test_the_readable_plan_of_a_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(json.dumps({"image_search_paths": [str(tmp_path / "images")]}))
    write_os_image(tmp_path / "images")
    place = write_project(tmp_path / "demo")
    (place / ".env").write_text("A=x")
    first = run(place)
    assert first.exit_code == 4
    assert "pending: .encrypted-env" in first.output
    assert "chain: not asked" in first.output
    _, plan = planned(place)
    (tmp_path / "old.json").write_text(json.dumps(plan))
    write_project(place, public_logs=True)
    changed = run(place, "--against", str(tmp_path / "old.json"))
    assert "~ app_compose.public_logs: false -> true" in changed.output
    assert run(place, "--against", str(tmp_path / "old.json"), "--json").exit_code == 4


def test_n73_a_refused_plan_asks_no_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "absent"))
    place = write_project(
        tmp_path / "demo", compose="services:\n  web:\n    image: nginx\n", os_image="image"
    )
    write_os_image(tmp_path / "home" / ".dstack" / "images", name="image")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result = run(place, "--rpc", "http://127.0.0.1:1", "--kms-contract", "0x" + "11" * 20)
    assert result.exit_code == 3
    assert "[lint.image.digest]" in result.output


def failure(result: Result) -> DstackError:
    assert isinstance(result.exception, DstackError)
    return result.exception


def test_writes_nothing_beside_the_cache(enclave: Path) -> None:
    def listing() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (enclave, *enclave.rglob("*"))}

    before = listing()
    assert run(enclave).exit_code == 4
    assert listing() == before


def test_an_endpoint_that_is_down_is_a_failure(enclave: Path) -> None:
    error = failure(run(enclave, "--rpc", "http://127.0.0.1:1", "--kms-contract", "0x" + "11" * 20))
    assert isinstance(error, UnavailableError)
    assert (error.code, error.exit_code) == ("net.unreachable", 1)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--rpc", "http://127.0.0.1:1"), "plan.kms_contract"),
        (("--chain-id", "1"), "plan.chain_id"),
        (("--app-owner", "0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266"), "plan.option"),
        (("--app-id", "abc"), "plan.option"),
        (("--device-id", "ab"), "plan.option"),
        (("--against", "gone.json"), "plan.file.missing"),
    ],
)
def test_wrong_options_are_usage(enclave: Path, arguments: tuple[str, ...], code: str) -> None:
    error = failure(run(enclave, *arguments))
    assert isinstance(error, ConfigError)
    assert (error.code, error.exit_code) == (code, 2)


def test_finds_config_and_cache_where_upstream_and_the_desktop_put_them() -> None:
    assert config_path({}) == Path.home() / ".config" / "dstack-cloud" / "config.json"
    assert config_path({"DSTACK_CLOUD_CONFIG": "~/x"}) == Path.home() / "x"
    assert cache_path({}) == Path.home() / ".cache" / "dstack-cloud" / "images"
    assert cache_path({"XDG_CACHE_HOME": "/c"}) == Path("/c/dstack-cloud/images")
    assert cache_path({"XDG_CACHE_HOME": "c"}) == cache_path({})
    with refuses("place.home", ConfigError):
        config_path({"DSTACK_CLOUD_CONFIG": "~nobody-here/x"})


@pytest.mark.parametrize("case", [str, str.lower, lambda text: "0x" + text[2:].upper()])
def test_takes_an_address_in_one_case_or_with_its_checksum(enclave: Path, case: Callable[[str], str]) -> None:
    address = case("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
    assert run(enclave, "--app-owner", address, "--kms-contract", address).exit_code == 4


def test_another_chain_is_refused(site: Site, enclave: Path) -> None:
    assert failure(run(enclave, *site.options, "--chain-id", "1")).code == "plan.chain_id"
    assert run(enclave, *site.options, "--chain-id", "31337").exit_code == 5


def test_says_how_old_the_block_is(site: Site, enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = planned(enclave, *site.options)
    monkeypatch.setattr("cli.plan.time.time", lambda: plan["chain"]["block_time"] + 3630.0)
    assert "note: that block is 60 minutes old" in run(enclave, *site.options).output
    monkeypatch.setattr("cli.plan.time.time", lambda: plan["chain"]["block_time"] + 60.0)
    assert "minutes old" not in run(enclave, *site.options).output
