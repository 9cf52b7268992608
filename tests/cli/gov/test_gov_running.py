"""`gov status` and deployments that are up: each is held to what the contracts say of what it runs."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cli.gov import status
from functions.deploy.record import (
    Deployment,
    Failure,
    Goal,
    Planned,
    Proven,
    Quarantine,
    Resource,
    Step,
)
from functions.deploy.views import summary, whole
from tests.cli.gov.conftest import OTHER, Ran, Site, planned, up
from tests.cli.gov.relays import relays
from tests.functions.deploy.memory_cloud import some_deployment

Fresh = Callable[[], str]
Deployed = Callable[..., None]


class Web:
    """An app, an image that is allowed, and a compose hash of the app's."""

    def __init__(self, site: Site, fresh: Fresh, platform: str = "gcp") -> None:
        self._site = site
        self.app_id, self.image, self.compose = site.app(), fresh(), fresh()
        site.send("image", "add", self.image)
        site.send("app", "add-hash", self.app_id, self.compose)
        site.send("app", "allow-any-device", self.app_id, "true")
        self.plan = planned(self.app_id, self.compose, self.image, platform)

    def revoke(self) -> None:
        self._site.send("app", "remove-hash", self.app_id, self.compose)

    def update(self, compose: str) -> Planned:
        return planned(self.app_id, compose, self.image, self.plan.platform)


def told(ran: Ran, name: str = "web") -> str:
    """Return what the list of deployments that are up says of one."""
    block = ran.output.partition("running deployments: ")[2].partition("deployments that wait")[0]
    return next((line.strip() for line in block.splitlines() if line.startswith(f"  {name}  ")), "")


def test_status_tells_what_runs_against_the_policy(site: Site, fresh: Fresh, deployed: Deployed) -> None:
    app_id, image, compose = site.app(), fresh(), fresh()
    deployed(up(planned(app_id, compose, image, "nitro")))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (3, "web  OS image is not allowed")
    site.send("image", "add", image)
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (3, "web  Compose hash not allowed")
    assert "NOT ALLOWED  1 running" in ran.output
    site.send("app", "add-hash", app_id, compose)
    site.send("app", "allow-any-device", app_id, "true")
    ran = site.gov("status", "--json")
    assert (ran.code, ran.json["deployments"][0]["refused"]) == (0, [])


@pytest.mark.parametrize(
    "step", [Step.AWAIT_APPROVAL, Step.FAILED, Step.STOP, Step.AWAIT_ATTESTATION, Step.BUILD, Step.RETIRE]
)
def test_revoked_code_counts_for_as_long_as_its_machine_is_up(
    site: Site, fresh: Fresh, deployed: Deployed, step: Step
) -> None:
    web = Web(site, fresh)
    update = web.update(fresh())
    site.send("app", "add-hash", web.app_id, "0x" + update.compose_hash)
    # what is planned next is allowed, and it is the old code that runs
    deployed(msgspec.structs.replace(up(web.plan), step=step, planned=update))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (0, "web  allowed")
    web.revoke()
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (3, "web  Compose hash not allowed")


def test_what_waits_beside_an_allowed_machine_is_no_violation(
    site: Site, fresh: Fresh, deployed: Deployed
) -> None:
    web = Web(site, fresh)
    deployed(msgspec.structs.replace(up(web.plan), step=Step.AWAIT_APPROVAL, planned=web.update(fresh())))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (0, "web  allowed")
    assert "web  1 calls are missing" in ran.output


@pytest.mark.parametrize("keep", [True, False])
def test_a_failed_launch_counts_where_it_may_have_left_a_machine(
    site: Site, fresh: Fresh, deployed: Deployed, *, keep: bool
) -> None:
    web = Web(site, fresh)
    web.revoke()
    left = Resource(kind="disk", name="web", state="present", keep=keep)
    failure = Failure(code="cloud.denied", message="no", hint="", step=Step.LAUNCH, at=0)
    deployed(some_deployment(step=Step.FAILED, planned=web.plan, resources=(left,), failure=failure))
    assert site.gov("status").code == (0 if keep else 3)


def _stopped(web: Web) -> Deployment:
    return msgspec.structs.replace(up(web.plan), step=Step.STOPPED, goal=Goal.STOPPED, launched=None)


def _starting(web: Web) -> Deployment:
    return msgspec.structs.replace(_stopped(web), goal=Goal.RUNNING)


def _quarantined(web: Web) -> Deployment:
    held = Quarantine(reason="Compose hash not allowed", chain_id=1, block_number=1, block_hash="aa", at=0)
    return msgspec.structs.replace(_starting(web), quarantine=held)


def _being_stopped(web: Web) -> Deployment:
    return msgspec.structs.replace(_quarantined(web), step=Step.STOP, launched=up(web.plan).launched)


def _given_up(web: Web) -> Deployment:
    failure = Failure(code="cloud.denied", message="no", hint="", step=Step.STOP, at=0)
    return msgspec.structs.replace(_quarantined(web), step=Step.FAILED, failure=failure)


def _removed(web: Web) -> Deployment:
    return msgspec.structs.replace(_stopped(web), step=Step.REMOVED, goal=Goal.REMOVED, running=None)


@pytest.mark.parametrize(
    ("where", "code"),
    [(_stopped, 0), (_starting, 3), (_quarantined, 0), (_being_stopped, 3), (_given_up, 3), (_removed, 0)],
)
def test_what_was_stopped_counts_until_it_is_down_and_when_it_starts_again(
    site: Site, fresh: Fresh, deployed: Deployed, where: Callable[[Web], Deployment], code: int
) -> None:
    web = Web(site, fresh)
    web.revoke()
    deployed(where(web))
    assert site.gov("status").code == code


def test_what_runs_and_cannot_be_judged_is_no_success(site: Site, fresh: Fresh, deployed: Deployed) -> None:
    deployed(up(Web(site, fresh).plan))
    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lambda asked: (
            {"error": {"code": -32000, "message": "busy"}}
            if asked["method"] == "eth_call" and asked["params"][0]["data"].startswith("0x1e079198")
            else None
        )
        ran = site.gov("status", rpc=relay.url)
    assert (ran.code, "could not be read: 127.0.0.2 answered with an error: busy" in told(ran)) == (1, True)


@pytest.mark.parametrize("runtime", ["5f5ffd", "60205ff3"])  # one reverts, one answers what is no decision
def test_an_app_that_gives_no_decision_gets_no_keys(
    site: Site, fresh: Fresh, deployed: Deployed, runtime: str
) -> None:
    image, app_id = fresh(), site.contract(runtime)
    site.send("image", "add", image)
    site.send("app", "register", app_id, account=OTHER)
    deployed(up(planned(app_id, fresh(), image)))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (3, "web  isAppAllowed reverts")


@pytest.mark.parametrize(
    ("device", "code", "says"),
    [
        ("77" * 32, 3, "web  Device not allowed"),
        ("d1" * 32, 0, "web  allowed"),
        ("", 1, "web  the app lists its devices, and this machine's id is not known"),
    ],
)
def test_a_device_counts_where_it_is_known(
    site: Site, fresh: Fresh, deployed: Deployed, device: str, code: int, says: str
) -> None:
    web = Web(site, fresh)
    site.send("app", "allow-any-device", web.app_id, "false")
    site.send("app", "add-device", web.app_id, "0x" + "d1" * 32)
    proven = Proven(mr_aggregated="a1" * 32, device_id=device, tcb_status="UpToDate") if device else None
    deployed(up(web.plan, proven=proven))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (code, says)


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
    site: Site, fresh: Fresh, deployed: Deployed, platform: str, verdict: dict[str, str], *, is_refused: bool
) -> None:
    web = Web(site, fresh, platform)
    site.send("app", "require-tcb", web.app_id, "true")
    deployed(up(web.plan, verdict=verdict))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (
        (3, "web  TCB status is not up to date") if is_refused else (0, "web  allowed")
    )


class KeyServer:
    """A key server: no contract can be at its app id, a part of its compose hash."""

    def __init__(self, site: Site, fresh: Fresh) -> None:
        image, compose = fresh(), fresh()
        compose = "0x" + compose[2:][::-1]  # whose first digits differ
        self.mr, self.device = fresh(), fresh()
        site.send("image", "add", image)
        site.send("kms", "add-device", self.device)
        self._plan = planned(compose[:42], compose, image)

    def runs(self, *, known: str = "", is_proven: bool = True) -> Deployment:
        proven = Proven(mr_aggregated=self.mr[2:], device_id=self.device[2:], tcb_status="UpToDate")
        found = up(self._plan, proven=proven if is_proven else None)
        return msgspec.structs.replace(found, name="kms", key_server=known[2:])


@pytest.mark.parametrize("is_known", [True, False])
def test_a_key_server_is_held_to_what_the_contract_says_of_key_servers(
    site: Site, fresh: Fresh, deployed: Deployed, *, is_known: bool
) -> None:
    server = KeyServer(site, fresh)
    site.send("kms", "add-mr", server.mr)
    deployed(server.runs(known=server.mr if is_known else ""))
    ran = site.gov("status")
    assert (ran.code, told(ran, "kms")) == (0, "kms  allowed")
    site.send("kms", "remove-mr", server.mr)
    ran = site.gov("status")
    assert (ran.code, told(ran, "kms")) == (3, "kms  Aggregated MR not allowed")
    site.send("kms", "add-mr", server.mr)
    site.send("kms", "remove-device", server.device)
    ran = site.gov("status")
    assert (ran.code, told(ran, "kms")) == (3, "kms  KMS is not allowed to boot on this device")


def test_a_key_server_without_evidence_yet_is_not_told_to_be_stopped(
    site: Site, fresh: Fresh, deployed: Deployed
) -> None:
    deployed(KeyServer(site, fresh).runs(is_proven=False))
    ran = site.gov("status")
    assert (ran.code, told(ran, "kms")) == (
        1,
        "kms  it is no app of the contract's, and no evidence shows what it is",
    )


def test_evidence_of_a_key_server_does_not_excuse_an_app_that_nobody_registered(
    site: Site, fresh: Fresh, deployed: Deployed
) -> None:
    image = fresh()
    site.send("image", "add", image)
    proven = Proven(mr_aggregated="a1" * 32, device_id="d1" * 32, tcb_status="UpToDate")
    deployed(up(planned("0x" + "77" * 20, fresh(), image), proven=proven))
    ran = site.gov("status")
    assert (ran.code, told(ran)) == (3, "web  App not registered")


@pytest.mark.parametrize("field", ["launched", "key_server", "device_id"])
def test_a_view_that_lacks_what_is_judged_by_is_no_success(
    site: Site, fresh: Fresh, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    found = up(planned(site.app(), fresh(), fresh()))

    class Older:
        """A deploy function of a version that does not show all of it."""

        def list_all(self) -> list[dict[str, Any]]:
            return [summary(found)]

        def get(self, _name: str) -> dict[str, Any]:
            return {name: value for name, value in whole(found).items() if name != field}

    monkeypatch.setattr(status, "deployments_of", lambda *_: Older())
    ran = site.gov("status")
    assert ran.code == 1
    assert f"deployments are not told: the answer is no deployment of this version: '{field}'" in ran.output
