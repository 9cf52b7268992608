"""Measurements and devices that are removed: of key servers, and of apps by what their evidence proved."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.record import Deployment, Planned, Proven, Running, Step, workload
from functions.governance.chain import View
from functions.governance.delivery import LogHint
from shared.boot_info import BootInfo
from shared.chain import abi, rules
from shared.chain.header import BlockRef
from shared.errors import UnavailableError
from shared.keccak import keccak256
from tests.functions.deploy.memory_cloud import some_deployment
from tests.functions.governance.world import KMS, MemoryChain, World, plain, settle
from tests.shared.refusal import refuses

MR, OTHER_MR = "a1" * 32, "a2" * 32
DEVICE, OTHER_DEVICE = "d1" * 32, "d2" * 32
PROVEN = Proven(mr_aggregated=MR, device_id=DEVICE, tcb_status="UpToDate")
COMPOSE, IMAGE, APP = "c1" * 32, "44" * 32, "22" * 20


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the contracts hold at a block, as far as it is asked about here."""

    measurements: frozenset[str] = frozenset({MR})
    kms_devices: frozenset[str] = frozenset({DEVICE})
    devices: frozenset[str] = frozenset({DEVICE})
    allow_any_device: bool = False
    require_tcb: bool = False


class PolicyChain(MemoryChain):
    """A chain whose blocks have policies; of one app, which allows one compose hash."""

    def __init__(self) -> None:
        super().__init__()
        self.policies = [Policy()]

    def change(self, event: str, **changes: Any) -> LogHint:
        """Make a block with another policy, and return the log of an event of the KMS contract in it."""
        self.mine()
        known = self.policies + [self.policies[-1]] * (self.head - len(self.policies))
        self.policies = [*known, msgspec.structs.replace(known[-1], **changes)]
        return LogHint(
            address=KMS,
            block_hash=self.ref(self.head).hash,
            block_number=self.head,
            log_index=0,
            topic=keccak256(event.encode()),
        )

    def verdict(self, block: BlockRef, one: BootInfo, selector: bytes, allowed: frozenset[str]) -> str:
        del allowed
        policy = self.policies[min(block.number, len(self.policies) - 1)]
        decide = _app if selector == abi.IS_APP_ALLOWED else _key_server
        return decide(policy, one)


def _app(policy: Policy, one: BootInfo) -> str:
    if one.app_id.hex() != APP:
        return rules.APP_NOT_REGISTERED
    if policy.require_tcb and one.tcb_status != rules.UP_TO_DATE:
        return rules.TCB_NOT_UP_TO_DATE
    is_known = policy.allow_any_device or one.device_id.hex() in policy.devices
    return rules.ALLOWED if is_known else rules.DEVICE_NOT_ALLOWED


def _key_server(policy: Policy, one: BootInfo) -> str:
    if one.tcb_status != rules.UP_TO_DATE:
        return rules.TCB_NOT_UP_TO_DATE
    if one.mr_aggregated.hex() not in policy.measurements:
        return rules.AGGREGATED_MR_NOT_ALLOWED
    return rules.ALLOWED if one.device_id.hex() in policy.kms_devices else rules.KMS_DEVICE_NOT_ALLOWED


class Site(World):
    """Deployments under policies that change."""

    chain: PolicyChain

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, PolicyChain())

    def run_one(
        self,
        name: str = "kms",
        *,
        app_id: str = COMPOSE[:40],
        proven: Proven | None = PROVEN,
        **fields: Any,
    ) -> None:
        """Put a deployment there that runs; it is a key server unless it has an app id of its own."""
        planned = Planned(
            plan_id="1",
            app_id=app_id,
            compose_hash=COMPOSE,
            os_image_hash=IMAGE,
            platform="gcp",
            plan="",
        )
        self.store.create(
            some_deployment(
                name,
                step=Step.RUNNING,
                planned=planned,
                running=Running(plan_id="1", proven=proven, attested_at=self.now),
                launched=workload(planned),
                **fields,
            )
        )

    def run_app(self, **fields: Any) -> None:
        """Put the app there, on a device that its evidence proved."""
        proven = Proven(mr_aggregated=OTHER_MR, device_id=DEVICE, tcb_status="UpToDate")
        self.run_one("web", **{"app_id": APP, "proven": proven} | fields)

    def told(self, event: str, **changes: Any) -> None:
        """Change the policy, deliver the event, and have the looks made."""
        hint = self.chain.change(event, **changes)
        self.post(plain(hint, id=hint.block_hash.hex()))
        self.drain()

    def finalise(self) -> None:
        self.chain.final = self.chain.head
        self.service.reconcile()

    def reason(self, name: str) -> str:
        held = self.get(name).quarantine
        return "" if held is None else held.reason


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


NOBODY: frozenset[str] = frozenset()
MR_REMOVED, MR_ADDED = "KmsAggregatedMrRemoved(bytes32)", "KmsAggregatedMrAdded(bytes32)"
KMS_DEVICE_REMOVED, KMS_DEVICE_ADDED = "KmsDeviceRemoved(bytes32)", "KmsDeviceAdded(bytes32)"
KEY_SERVER_REMOVALS = [
    (MR_REMOVED, "measurements", "Aggregated MR not allowed"),
    (KMS_DEVICE_REMOVED, "kms_devices", "KMS is not allowed to boot on this device"),
]


# ---- key servers ----


@pytest.mark.parametrize(("event", "field", "reason"), KEY_SERVER_REMOVALS, ids=["measurement", "device"])
def test_a_key_server_that_the_contract_takes_back_is_stopped_at_once(
    site: Site, event: str, field: str, reason: str
) -> None:
    site.run_one()
    site.told(event, **{field: NOBODY})
    assert site.reason("kms") == reason
    assert "governance.stopped" in site.codes()
    assert site.advanced == ["kms"]


@pytest.mark.parametrize(("event", "field", "reason"), KEY_SERVER_REMOVALS, ids=["measurement", "device"])
def test_a_removal_that_was_final_before_anybody_looked_stops_it(
    site: Site, event: str, field: str, reason: str
) -> None:
    site.run_one()
    site.service.reconcile()
    site.chain.change(event, **{field: NOBODY})
    site.finalise()
    assert site.reason("kms") == reason


@pytest.mark.parametrize(
    ("event", "field", "value", "again"),
    [
        (MR_REMOVED, "measurements", MR, MR_ADDED),
        (KMS_DEVICE_REMOVED, "kms_devices", DEVICE, KMS_DEVICE_ADDED),
    ],
    ids=["measurement", "device"],
)
def test_a_key_server_that_is_allowed_again_goes_on_when_that_is_final(
    site: Site, event: str, field: str, value: str, again: str
) -> None:
    site.run_one()
    site.service.reconcile()
    site.told(event, **{field: NOBODY})
    settle(site.store, "kms")
    site.finalise()
    assert site.get("kms").step is Step.STOPPED
    site.told(again, **{field: frozenset({value})})
    assert site.get("kms").quarantine is not None
    site.finalise()
    assert site.get("kms").quarantine is None
    settle(site.store, "kms")
    assert site.get("kms").step is Step.RUNNING


@pytest.mark.parametrize("event", [MR_REMOVED, KMS_DEVICE_REMOVED])
def test_what_the_state_still_allows_runs_on(site: Site, event: str) -> None:
    site.run_one()
    site.told(event)
    assert site.get("kms").quarantine is None
    assert site.advanced == []
    assert set(site.codes()) == {"governance.event"}


def test_another_measurement_and_another_device_stop_no_key_server(site: Site) -> None:
    both = {"measurements": frozenset({MR, OTHER_MR}), "kms_devices": frozenset({DEVICE, OTHER_DEVICE})}
    site.chain.change(MR_ADDED, **both)
    site.run_one()
    site.told(MR_REMOVED, measurements=frozenset({MR}))
    site.told(KMS_DEVICE_REMOVED, kms_devices=frozenset({DEVICE}))
    assert site.get("kms").quarantine is None


def test_a_removal_that_is_reorganised_away_is_undone(site: Site) -> None:
    site.run_one()
    site.service.reconcile()
    site.told(MR_REMOVED, measurements=NOBODY)
    settle(site.store, "kms")
    site.chain.reorganise(1)
    site.chain.policies.pop()
    site.chain.mine(fork="other")
    site.service.reconcile()
    assert site.get("kms").quarantine is None


def test_n57_endpoints_that_disagree_about_a_key_server_stop_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run_one()
    site.service.reconcile()
    view = site.chain.view

    def differ(block: BlockRef, workloads: Any, selector: bytes = abi.IS_APP_ALLOWED) -> View:
        if selector == abi.IS_KMS_ALLOWED:
            return View(block, (None,) * len(workloads), "1 of 2 say 'Aggregated MR not allowed'")
        return view(block, workloads, selector)

    monkeypatch.setattr(site.chain, "view", differ)
    with refuses("governance.quorum.disagreement", UnavailableError):
        site.governor.look(KMS)
    assert site.get("kms").quarantine is None
    assert [one.severity for one in site.notices] == ["alarm"]


def test_a_key_server_that_was_not_allowed_yet_is_told_of_and_runs(site: Site) -> None:
    """Its measurement and its device are known when it runs, and no sooner."""
    site.chain.change(MR_REMOVED, measurements=NOBODY)
    site.chain.final = site.chain.head
    site.run_one()
    site.governor.look(KMS)
    assert site.get("kms").quarantine is None
    assert site.codes() == ["governance.key_server.not_allowed"]
    site.notices.clear()
    site.told(MR_ADDED, measurements=frozenset({MR}))
    site.finalise()
    assert site.get("kms").key_server == MR
    site.told(MR_REMOVED, measurements=NOBODY)
    assert site.reason("kms") == "Aggregated MR not allowed"


def test_a_key_server_without_evidence_is_told_of_and_runs(site: Site) -> None:
    site.run_one(proven=None)
    site.told(MR_REMOVED, measurements=NOBODY)
    assert site.get("kms").quarantine is None
    assert "governance.key_server.unproven" in site.codes()


def test_evidence_of_an_enclave_has_no_tcb_status_that_a_key_server_is_stopped_for(site: Site) -> None:
    site.run_one(proven=Proven(mr_aggregated=MR, device_id=DEVICE))
    site.service.reconcile()
    assert (site.get("kms").key_server, site.codes()) == (MR, [])


def test_an_app_that_is_not_registered_is_stopped_whatever_its_measurement(site: Site) -> None:
    site.run_one("web", app_id="77" * 20, proven=Proven(mr_aggregated=OTHER_MR, device_id=DEVICE))
    site.governor.look(KMS)
    assert site.reason("web") == "App not registered"


def test_a_key_server_is_recognised_under_any_app_id(site: Site) -> None:
    site.run_one("kms", app_id="77" * 20)
    site.service.reconcile()
    site.told(MR_REMOVED, measurements=NOBODY)
    assert site.reason("kms") == "Aggregated MR not allowed"


def test_other_files_are_no_key_server_for_what_ran_before(site: Site) -> None:
    site.run_one(
        proven=Proven(mr_aggregated=OTHER_MR, device_id=DEVICE, tcb_status="UpToDate"), key_server=MR
    )
    site.governor.look(KMS)
    assert site.get("kms").quarantine is None
    assert site.codes() == ["governance.key_server.not_allowed"]


# ---- apps ----


def test_an_app_on_a_device_that_is_removed_is_stopped_by_what_its_evidence_proved(site: Site) -> None:
    site.run_app()
    site.told("DeviceRemoved(bytes32)", devices=NOBODY)
    assert site.reason("web") == "Device not allowed"
    settle(site.store)
    site.finalise()
    assert site.get().step is Step.STOPPED
    site.told("DeviceAdded(bytes32)", devices=frozenset({DEVICE}))
    site.finalise()
    assert site.get().quarantine is None


def test_an_app_whose_device_stays_runs_on_when_another_is_removed(site: Site) -> None:
    site.run_app()
    site.told("DeviceRemoved(bytes32)")
    site.told(KMS_DEVICE_REMOVED, kms_devices=NOBODY)
    assert site.get().quarantine is None


def test_the_device_of_evidence_counts_and_not_the_one_that_was_named(site: Site) -> None:
    site.run_app(settings={"device_id": OTHER_DEVICE})
    site.told("DeviceRemoved(bytes32)", devices=frozenset({OTHER_DEVICE}))
    assert site.reason("web") == "Device not allowed"


def test_an_app_that_allows_any_device_no_more_stops_where_it_is_not_listed(site: Site) -> None:
    site.chain.change("AllowAnyDeviceSet(bool)", allow_any_device=True, devices=frozenset({OTHER_DEVICE}))
    site.run_app()
    site.told("AllowAnyDeviceSet(bool)", allow_any_device=False)
    assert site.reason("web") == "Device not allowed"
    site.told("AllowAnyDeviceSet(bool)", allow_any_device=True)
    site.finalise()
    assert site.get().quarantine is None


def test_an_app_that_allows_any_device_no_more_runs_on_where_it_is_listed(site: Site) -> None:
    site.chain.change("AllowAnyDeviceSet(bool)", allow_any_device=True)
    site.run_app()
    site.told("AllowAnyDeviceSet(bool)", allow_any_device=False)
    assert site.get().quarantine is None


def test_a_device_that_nothing_tells_is_told_of_and_stops_nothing(site: Site) -> None:
    site.run_app(proven=None)
    site.told("DeviceRemoved(bytes32)", devices=NOBODY)
    assert site.get().quarantine is None
    [told] = [one for one in site.notices if one.code == "governance.device.unknown"]
    assert (told.severity, told.facts["name"]) == ("warning", "web")


def test_a_tcb_status_that_is_out_of_date_stays_a_reason_after_the_stop(site: Site) -> None:
    site.run_app(proven=Proven(mr_aggregated=OTHER_MR, device_id=DEVICE, tcb_status="OutOfDate"))
    site.told("RequireTcbUpToDateSet(bool)", require_tcb=True)
    assert site.reason("web") == "TCB status is not up to date"
    settle(site.store)
    site.chain.mine()
    site.finalise()
    assert site.get().quarantine is not None
    site.told("RequireTcbUpToDateSet(bool)", require_tcb=False)
    site.finalise()
    assert site.get().quarantine is None


def test_a_machine_that_was_started_again_is_not_judged_by_where_it_ran_before(site: Site) -> None:
    site.run_app()
    found: Deployment = site.get()
    stopped = msgspec.structs.replace(found, step=Step.STOPPED, launched=None, version=found.version + 1)
    site.store.replace(stopped, found.version)
    site.told("DeviceRemoved(bytes32)", devices=NOBODY)
    assert site.get().quarantine is None
