"""`gov`'s lists and `gov status`: what the contracts allow, of one block."""

from collections.abc import Callable
from typing import Any

import pytest

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


def test_wants_an_endpoint(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    output, code = call(["gov", "image", "list", "--kms-contract", site.kms])
    assert ("gov.option" in output, code) == (True, 2)
    monkeypatch.setenv("DSTACK_RPC_URL", site.chain.url)
    assert call(["gov", "image", "list", "--kms-contract", site.kms])[1] == 0
