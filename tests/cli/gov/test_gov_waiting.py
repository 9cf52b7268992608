"""`gov status` and deployments that wait for governance: which calls they still need."""

from collections.abc import Callable
from typing import Any

import pytest

from cli.gov import status
from shared.chain.create2 import DEPLOYER
from tests.cli.gov.conftest import Site
from tests.cli.gov.relays import relays

Fresh = Callable[[], str]


class _Deployments:
    """One deployment that waits."""

    def __init__(self, planned: dict[str, str] | None) -> None:
        self._one = {"name": "web", "step": "await_approval", "planned": planned, "running": None}

    def list_all(self) -> list[dict[str, Any]]:
        return [self._one]

    def get(self, _name: str) -> dict[str, Any]:
        return self._one


def waits(monkeypatch: pytest.MonkeyPatch, app_id: str, compose: str, image: str) -> None:
    planned = {"app_id": app_id[2:].lower(), "compose_hash": compose[2:], "os_image_hash": image[2:]}
    monkeypatch.setattr(status, "deployments_of", lambda *_: _Deployments(planned))


def missing(site: Site) -> list[str]:
    (waiting,) = site.gov("status", "--json").json["deployments_waiting"]
    return [one["text"].partition("(")[0] for one in waiting["calls"]]


def test_tells_the_calls_that_are_missing_until_they_are_made(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    waits(monkeypatch, app_id, compose, image)
    ran = site.gov("status")
    assert ran.code == 0
    assert "web  2 calls are missing" in ran.output
    assert f"data    0x06a3ae96{image[2:]}" in ran.output
    assert missing(site) == ["addOsImageHash", "addComposeHash"]
    site.send("image", "add", image)
    assert missing(site) == ["addComposeHash"]
    site.send("app", "add-hash", app_id, compose)
    assert missing(site) == []


def test_an_app_that_is_not_registered_is_to_be(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, site.contract("00"), fresh(), fresh())  # a contract, and no app
    assert "registerApp" in missing(site)


def test_where_no_app_is_that_is_told(site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch, "0x" + "77" * 20, fresh(), fresh())
    ran = site.gov("status")
    assert "no contract is at the app id: only the plan tells what makes one" in ran.output


def test_a_contract_of_another_kind_is_told(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, f"0x{DEPLOYER.hex()}", fresh(), fresh())
    assert "a contract of another kind is at the app id" in site.gov("status").output


def test_a_deployment_without_a_plan_is_not_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "deployments_of", lambda *_: _Deployments(None))
    assert site.gov("status", "--json").json["deployments_waiting"] == []


def test_an_app_id_that_is_none_is_told(site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch, "0xzz", fresh(), fresh())
    ran = site.gov("status")
    assert "[hex.invalid]" in ran.output
    assert ran.code == 1  # what runs is not known


def test_an_app_that_cannot_be_read_is_told(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_id = site.app()
    waits(monkeypatch, app_id, fresh(), fresh())
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: (
            {"error": {"code": -32000, "message": "busy"}}
            if asked["method"] == "eth_call" and asked["params"][0]["to"] == app_id.lower()
            else None
        )
        ran = site.gov("status", rpc=relay.url)
    assert "note    the app contract could not be read: 127.0.0.2 answered with an error: busy" in ran.output
