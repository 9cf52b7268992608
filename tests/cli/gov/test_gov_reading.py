"""`gov`'s lists and `gov status`: what the contracts allow, of one block."""

from collections.abc import Callable
from typing import Any

import pytest

from cli.gov import status
from cli.gov.chain import Contracts
from cli.gov.running import held_to_policy
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import JsonRpc
from tests.cli.gov.conftest import OTHER, OWNER, Site
from tests.cli.gov.relays import relays
from tests.docs.console_page import call

Fresh = Callable[[], str]


def values(rows: list[dict[str, Any]]) -> dict[str, bool]:
    return {one["value"]: one["allowed"] for one in rows}


def test_lists_what_is_allowed_now(site: Site, fresh: Fresh) -> None:
    kept, revoked = fresh(), fresh()
    site.send("image", "add", kept, revoked)
    site.send("image", "remove", revoked)
    listed = values(site.gov("image", "list", "--json").json["images"])
    assert (listed.get(kept), revoked in listed) == (True, False)
    assert values(site.gov("image", "list", "--all", "--json").json["images"])[revoked] is False
    assert kept in site.gov("image", "list").output


def test_lists_key_servers(site: Site, fresh: Fresh) -> None:
    measurement, device = fresh(), fresh()
    site.send("kms", "add-mr", measurement)
    site.send("kms", "add-device", device)
    listed = site.gov("kms", "list", "--json").json
    assert values(listed["measurements"])[measurement]
    assert values(listed["devices"])[device]


def test_lists_apps_and_what_each_may_run(site: Site, fresh: Fresh) -> None:
    app_id, value = site.app(owner=OTHER), fresh()
    site.send("app", "add-hash", app_id, value, account=OTHER)
    apps = {one["app_id"]: one for one in site.gov("app", "list", "--json").json["apps"]}
    assert apps[app_id]["owner"] == site.address(OTHER)
    assert apps[app_id]["code"]["known"] is True
    told = site.gov("app", "list", app_id, "--json").json
    assert (told["registered"], values(told["compose_hashes"])) == (True, {value: True})
    assert value in site.gov("app", "list", app_id).output


def test_a_list_begins_where_it_is_told_to(site: Site, fresh: Fresh) -> None:
    value = fresh()
    site.send("image", "add", value)
    since = site.gov("image", "list", "--json").json["block"]["number"]
    assert value in site.gov("image", "list", "--from-block", str(since)).output
    assert value not in site.gov("image", "list", "--from-block", str(since + 1)).output


def test_status_tells_who_may_change_what(site: Site) -> None:
    told = site.gov("status", "--json").json
    assert told["kms"]["owner"] == site.address(OWNER)
    assert told["kms"]["contract"] == site.kms
    assert told["kms"]["code"]["build"] == "dstack-cloud, cancun"
    assert any("a single key" in one for one in told["warnings"])
    assert told["deployments"] == []


@pytest.mark.parametrize(
    "answer", [{"error": {"code": -39001, "message": "unknown block"}}, {"result": None}]
)
def test_status_copes_with_a_chain_that_names_nothing_final(site: Site, answer: dict[str, Any]) -> None:
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: answer if asked["params"][:1] == ["finalized"] else None
        assert site.gov("status", "--json", rpc=relay.url).json["finalized"] is None
        ran = site.gov("status", rpc=relay.url)
    assert (ran.code, "what is final is not told" in ran.output) == (0, True)


def test_an_app_more_costs_status_a_request_more(site: Site) -> None:
    site.app()  # whose code and owner the others share
    with relays(site.chain.url, 1) as (relay,):
        site.gov("status", rpc=relay.url)
        before, relay.requests = relay.requests, 0
        for _ in range(4):
            site.app()
        site.gov("status", rpc=relay.url)
    # one for what each app answers, and one where a list begins another part
    assert relay.requests - before <= 4 + 2


def test_status_tells_of_a_transfer_that_waits(site: Site) -> None:
    app_id = site.app()
    site.send("transfer-ownership", site.address(OTHER), "--app", app_id)
    ran = site.gov("status")
    assert f"a transfer of app {app_id} to {site.address(OTHER)} is pending" in ran.output


class _Deployments:
    """One deployment that runs."""

    def __init__(self, planned: dict[str, str]) -> None:
        self._one = {"name": "web", "step": "running", "planned": planned, "running": {}}

    def list_all(self) -> list[dict[str, Any]]:
        return [self._one]

    def get(self, _name: str) -> dict[str, Any]:
        return self._one


def test_status_tells_what_runs_against_the_policy(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    planned = {"app_id": app_id[2:].lower(), "compose_hash": compose[2:], "os_image_hash": image[2:]}
    monkeypatch.setattr(status, "deployments_of", lambda *_: _Deployments(planned))
    ran = site.gov("status")
    assert ran.code == 3
    assert "web  the os image is not allowed; the compose hash is not allowed" in ran.output
    site.send("image", "add", image)
    site.send("app", "add-hash", app_id, compose)
    ran = site.gov("status", "--json")
    assert (ran.code, ran.json["deployments"][0]["refused"]) == (0, [])
    site.send("app", "remove-hash", app_id, compose)
    assert site.gov("status").code == 3


def test_what_runs_and_cannot_be_judged_is_no_success(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    planned = {"app_id": app_id[2:].lower(), "compose_hash": compose[2:], "os_image_hash": image[2:]}
    monkeypatch.setattr(status, "deployments_of", lambda *_: _Deployments(planned))
    site.send("image", "add", image)
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: (
            {"error": {"code": -32000, "message": "busy"}}
            if asked["method"] == "eth_call" and asked["params"][0]["to"] == app_id.lower()
            else None
        )
        ran = site.gov("status", rpc=relay.url)
    assert (ran.code, "web  its app contract could not be read" in ran.output) == (1, True)


@pytest.mark.parametrize("any_device", ["true", "false"])
def test_a_device_counts_where_the_evidence_named_it(site: Site, fresh: Fresh, any_device: str) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    site.send("image", "add", image)
    site.send("app", "add-hash", app_id, compose)
    site.send("app", "allow-any-device", app_id, any_device)
    planned = {"app_id": app_id[2:].lower(), "compose_hash": compose[2:], "os_image_hash": image[2:]}
    running = {"proven": {"device_id": "77" * 32}}
    contracts = Contracts(JsonRpc(site.chain.url, HttpClient(DirectDialer())), bytes.fromhex(site.kms[2:]))
    (held,) = held_to_policy(
        contracts,
        [{"name": "web", "step": "running", "planned": planned, "running": running}],
        contracts.pin(),
    )
    assert held.refused == (() if any_device == "true" else ("the device is not allowed",))


@pytest.mark.parametrize(
    ("platform", "verdict", "is_refused"),
    [
        ("nitro", {"tcb_status": ""}, True),
        ("nitro", {}, True),
        ("gcp", {"tcb_status": "OutOfDate"}, True),
        ("gcp", {"tcb_status": "UpToDate"}, False),
        ("gcp", {}, False),
    ],
)
def test_an_app_that_wants_a_tcb_status_is_held_to_it(
    site: Site, fresh: Fresh, platform: str, verdict: dict[str, str], *, is_refused: bool
) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    site.send("image", "add", image)
    site.send("app", "add-hash", app_id, compose)
    site.send("app", "require-tcb", app_id, "true")
    planned = {"app_id": app_id[2:].lower(), "compose_hash": compose[2:], "os_image_hash": image[2:]}
    one = {"name": "web", "step": "running", "planned": planned | {"platform": platform}}
    contracts = Contracts(JsonRpc(site.chain.url, HttpClient(DirectDialer())), bytes.fromhex(site.kms[2:]))
    (held,) = held_to_policy(contracts, [one | {"running": {"verdict": verdict}}], contracts.pin())
    assert held.refused == (("the app wants a tcb status of UpToDate",) if is_refused else ())


def test_wants_an_endpoint(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    output, code = call(["gov", "image", "list", "--kms-contract", site.kms])
    assert ("gov.option" in output, code) == (True, 2)
    monkeypatch.setenv("DSTACK_RPC_URL", site.chain.url)
    assert call(["gov", "image", "list", "--kms-contract", site.kms])[1] == 0
