"""`gov status` and deployments that wait for governance: which calls they still need."""

from collections.abc import Callable
from typing import Any

import pytest

from functions.deploy.record import Planned, Step
from shared.chain.create2 import DEPLOYER
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from tests.cli.gov.conftest import OTHER, Site, planned
from tests.cli.gov.relays import relays
from tests.functions.deploy.memory_cloud import some_deployment

Fresh = Callable[[], str]
Waits = Callable[..., None]


@pytest.fixture
def waits(deployed: Callable[..., None]) -> Waits:
    """Return what has one deployment wait for what was planned, with what was asked for beside."""

    def one(plan: Planned | None, **settings: Any) -> None:
        deployed(some_deployment(step=Step.AWAIT_APPROVAL, planned=plan, settings=settings))

    return one


def missing(site: Site) -> list[str]:
    (waiting,) = site.gov("status", "--json").json["deployments_waiting"]
    return [one["text"].partition("(")[0] for one in waiting["calls"]]


def test_tells_the_calls_that_are_missing_until_they_are_made(site: Site, fresh: Fresh, waits: Waits) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    site.send("app", "allow-any-device", app_id, "true")
    waits(planned(app_id, compose, image))
    ran = site.gov("status")
    assert ran.code == 0
    assert "web  2 calls are missing" in ran.output
    assert f"data    0x06a3ae96{image[2:]}" in ran.output
    assert missing(site) == ["addOsImageHash", "addComposeHash"]
    site.send("image", "add", image)
    assert missing(site) == ["addComposeHash"]
    site.send("app", "add-hash", app_id, compose)
    assert missing(site) == []


def test_tells_the_device_and_the_tcb_status_that_are_missing(site: Site, fresh: Fresh, waits: Waits) -> None:
    app_id, image, compose = site.app(owner=OTHER), fresh(), fresh()
    site.send("image", "add", image)
    site.send("app", "add-hash", app_id, compose, account=OTHER)
    site.send("app", "require-tcb", app_id, "true", account=OTHER)
    waits(planned(app_id, compose, image, "nitro"))
    ran = site.gov("status")
    assert "web  2 calls are missing" in ran.output
    assert "call    setRequireTcbUpToDate(requireUpToDate=false)" in ran.output
    assert f"sender  {site.address(OTHER)}" in ran.output
    (waiting,) = site.gov("status", "--json").json["deployments_waiting"]
    (device,) = (one["text"] for one in waiting["calls"] if one["text"].startswith("addDevice("))
    site.send("app", "add-device", app_id, device[len("addDevice(deviceId=") : -1], account=OTHER)
    assert missing(site) == ["setRequireTcbUpToDate"]
    site.send("app", "require-tcb", app_id, "false", account=OTHER)
    assert missing(site) == []


def test_the_device_that_was_asked_for_is_to_be_allowed(site: Site, fresh: Fresh, waits: Waits) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    waits(planned(app_id, compose, image), device_id="0x" + "d1" * 32)
    assert missing(site) == ["addOsImageHash", "addComposeHash", "addDevice"]
    assert f"addDevice(deviceId=0x{'d1' * 32})" in site.gov("status").output
    waits(planned(app_id, compose, image))
    assert missing(site) == ["addOsImageHash", "addComposeHash"]
    ran = site.gov("status")
    assert "blocked the app lists its devices, and this device's id is not known yet" in ran.output


def test_an_app_that_is_not_registered_is_to_be(site: Site, fresh: Fresh, waits: Waits) -> None:
    waits(planned(site.contract("00"), fresh(), fresh()))  # a contract, and no app
    assert "registerApp" in missing(site)


def test_where_no_app_is_that_is_told(site: Site, fresh: Fresh, waits: Waits) -> None:
    plan = planned("0x" + "77" * 20, fresh(), fresh())
    waits(plan)
    assert "blocked no app contract is at the app id: name its owner" in site.gov("status").output
    waits(plan, app_owner=site.address(OTHER))
    assert missing(site) == ["addOsImageHash", "deployAndRegisterApp"]
    assert "note    the new contract's address becomes the app id" in site.gov("status").output


def test_a_contract_of_another_kind_is_told(site: Site, fresh: Fresh, waits: Waits) -> None:
    waits(planned(f"0x{DEPLOYER.hex()}", fresh(), fresh()))
    assert "blocked the app contract is of another kind than ours" in site.gov("status").output


def test_a_deployment_without_a_plan_is_not_told(site: Site, waits: Waits) -> None:
    waits(None)
    assert site.gov("status", "--json").json["deployments_waiting"] == []


def test_an_app_id_that_is_none_is_told(site: Site, fresh: Fresh, waits: Waits) -> None:
    waits(planned("0xzz", fresh(), fresh()))
    ran = site.gov("status")
    assert "[hex.invalid]" in ran.output
    assert ran.code == 1  # what runs is not known


def test_an_app_that_cannot_be_read_is_told(site: Site, fresh: Fresh, waits: Waits) -> None:
    app_id = site.app()
    waits(planned(app_id, fresh(), fresh()))
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: (
            {"error": {"code": -32000, "message": "busy"}}
            if asked["method"] == "eth_call" and asked["params"][0]["to"] == app_id.lower()
            else None
        )
        ran = site.gov("status", rpc=relay.url)
    assert "web  what the contracts say could not be read: 127.0.0.2 answered with" in ran.output
    assert ran.code == 1


def test_several_endpoints_say_what_is_missing(site: Site, fresh: Fresh, waits: Waits) -> None:
    waits(planned(site.app(), fresh(), fresh(), "nitro"))
    endpoint = JsonRpc(site.chain.url, HttpClient(DirectDialer()))
    (block,) = endpoint.batch([("eth_getBlockByNumber", ["latest", False])])
    assert isinstance(block, dict)
    with relays(site.chain.url, 2) as (one, other):
        # nodes differ in what else they tell of a block
        one.lies("eth_getBlockByHash", block | {"totalDifficulty": "0x1"})
        ran = site.gov("status", "--rpc", other.url, rpc=one.url)
    assert "as 2 of 2 endpoints say" in ran.output
    assert "web  3 calls are missing" in ran.output
