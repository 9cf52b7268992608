"""A cloud in memory with the habits of real ones: it takes its time, and can be made to fail at any call.

Every call goes through `call`, where a test may raise: before the effect, or after it with the answer lost.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from functions.deploy.cloud import DeniedError, FirewallRule, LogPage, Machine, Wait, Work
from functions.deploy.record import Deployment, Event, Files, Goal, Step
from functions.deploy.steps import Attested, BuiltPlan
from functions.deploy.store import DeploymentStore
from functions.deploy.work import LeasedWork
from functions.plan.model import (
    AppIdentity,
    ApprovalPlan,
    ChainPlan,
    ComposePlan,
    GovernanceCall,
    ImagePlan,
    Plan,
)
from functions.plan.standing import BLOCKED, MISSING, Standing
from shared.compose.findings import Finding
from shared.errors import DstackError

NOW = 1_800_000_000


class Killed(BaseException):
    """The runner's process is gone: nothing catches it."""


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class MemoryCloud:
    """Instances and disks by name; each belongs to the uid that made it."""

    def __init__(self, boot_polls: int = 1) -> None:
        self.things: dict[tuple[str, str], dict[str, Any]] = {}
        self.boot_polls = boot_polls
        self.calls: list[str] = []
        self.on_call: Callable[[str, str], object] = lambda _call, _when: None
        self.findings: Sequence[Finding] = ()
        self.machine: dict[str, Any] = {}
        self.made: list[tuple[str, str]] = []

    def call(self, name: str, effect: Callable[[], Any]) -> Any:
        self.calls.append(name)
        self.on_call(name, "before")
        result = effect()
        self.on_call(name, "after")
        return result

    # ---- what a cloud's API would do ----

    def _create(self, kind: str, name: str, uid: str, **facts: Any) -> None:
        def effect() -> None:
            if (kind, name) in self.things:
                raise AssertionError(f"{kind} {name} was created twice")
            self.things[kind, name] = {"uid": uid, "polls": 0, "status": "RUNNING", **facts}
            self.made.append((kind, name))

        self.call(f"create {kind}", effect)

    def _get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.call(f"get {kind}", lambda: self.things.get((kind, name)))

    def _delete(self, kind: str, name: str) -> None:
        self.call(f"delete {kind}", lambda: self.things.pop((kind, name), None))

    def _list(self, uid: str) -> list[tuple[str, str]]:
        return self.call("list", lambda: [key for key, one in self.things.items() if one["uid"] == uid])

    # ---- the interface ----

    def check(self, work: Work) -> Sequence[Finding]:
        del work
        self.call("check", lambda: None)
        return self.findings

    def launch(self, work: Work) -> Wait | Machine:
        uid = work.deployment.uid
        for kind, keep in (("disk", True), ("image", False), ("instance", False)):
            resource = work.intend(kind, f"{work.deployment.name}-{kind}", "zone", keep=keep)
            found = self._get(kind, resource.name)
            if found is None:
                self._create(kind, resource.name, uid, plan=work.plan.plan_id)
            elif found["uid"] != uid:
                raise DeniedError("memory.name_taken", f"{resource.name} is another's", "choose a name")
            work.present(resource, id=f"{kind}-1")
        instance = self.things["instance", f"{work.deployment.name}-instance"]
        if instance["plan"] != work.plan.plan_id:
            raise AssertionError("a machine of an earlier plan was taken for the new one")
        instance["status"] = "RUNNING"
        return self._booted(instance)

    def start(self, work: Work) -> Wait | Machine:
        instance = self._get("instance", f"{work.deployment.name}-instance")
        if instance is None:
            raise DeniedError("memory.gone", "the instance is gone", "deploy again")

        def effect() -> None:
            instance["status"] = "RUNNING"

        self.call("start instance", effect)
        return self._booted(instance)

    def stop(self, work: Work) -> Wait | Machine:
        instance = self._get("instance", f"{work.deployment.name}-instance")
        if instance is not None and instance["status"] == "RUNNING":

            def effect() -> None:
                instance["status"] = "TERMINATED"
                instance["polls"] = 0

            self.call("stop instance", effect)
            return Wait(1, "the instance stops")
        return Machine(status="TERMINATED")

    def retire(self, work: Work) -> Wait | None:
        return self._remove(work, keep=True)

    def remove(self, work: Work) -> Wait | None:
        if (waiting := self._remove(work, keep=False)) is not None:
            return waiting
        for kind, name in self._list(work.deployment.uid):
            self._delete(kind, name)
        return None

    def _remove(self, work: Work, *, keep: bool) -> Wait | None:
        for resource in reversed(work.deployment.resources):
            if resource.state == "gone" or (keep and resource.keep):
                continue
            found = self._get(resource.kind, resource.name)
            if found is not None and found["uid"] == work.deployment.uid:
                self._delete(resource.kind, resource.name)
                return Wait(1, f"{resource.kind} goes")
            work.gone(resource)
        return None

    def describe(self, work: Work) -> Machine:
        instance = self._get("instance", f"{work.deployment.name}-instance")
        if instance is None:
            return Machine(status="NOT_FOUND")
        return self._described(instance)

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        del work
        text = "line\n" * 10
        at = int(cursor or 0)
        return LogPage(text[at : at + limit], str(min(len(text), at + limit)))

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        del work
        return ()

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        del work, rule

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        del work, protocol, port
        return False

    def _booted(self, instance: dict[str, Any]) -> Wait | Machine:
        instance["polls"] += 1
        if instance["polls"] <= self.boot_polls:
            return Wait(2, "the instance boots")
        return self._described(instance)

    def _described(self, instance: dict[str, Any]) -> Machine:
        claims = {
            "machine_type": "c3-standard-4",
            "confidential": "TDX",
            "traits": {"vtpm": True},
            "external_ip": "192.0.2.7",
            "internal_ip": "10.0.0.7",
            "evidence_url": "http://192.0.2.7:8090/evidence",
        }
        return Machine(status=instance["status"], **(claims | self.machine))


def some_plan(seed: str = "a", outcome: Any = "changes", findings: tuple[Finding, ...] = ()) -> Plan:
    return Plan(
        plan_id=(seed * 64)[:64],
        name="web",
        platform="gcp",
        outcome=outcome,
        app=AppIdentity("22" * 20, "app.json"),
        compose=ComposePlan(compose_hash="33" * 32, form="canonical", size=2, text="{}"),
        image=ImagePlan(os_image_hash="44" * 32, source="dstack-0.6.0", registers={}),
        events=(),
        config_disk=None,
        machine={"machine_type": "c3-standard-4"},
        findings=findings,
        deployed=None,
        changes=(),
        chain=None,
        approval=ApprovalPlan(checked=False, calls=(), blocked=(), notes=(), new_app_id=""),
    )


CALL = GovernanceCall(
    to="0x01",
    sender="",
    owner_only=True,
    function="addComposeHash",
    arguments=(),
    calldata="0x00",
    why="the app contract must allow it",
)


class MemoryTools:
    """Plans at once, is allowed by a chain that can be told not to, and attests what it is told to."""

    def __init__(self) -> None:
        self.plan = some_plan()
        self.missing: tuple[GovernanceCall, ...] = ()
        self.blocked: tuple[str, ...] = ()
        self.checked = True
        self.undecided: DstackError | None = None
        self.waits_for = ""
        self.lag = 12
        self.final_block = 5
        self.asked = 3
        self.attested: Attested | DstackError = Attested(simulated=True, verdict={"ok": True})
        self.calls: list[str] = []

    def build(self, work: LeasedWork) -> BuiltPlan:
        del work
        self.calls.append("build")
        return BuiltPlan(plan=self.plan, config={"app-compose.json": b"{}", ".sys-config.json": b"{}"})

    def ask_approval(self, work: LeasedWork) -> Standing:
        del work
        if self.undecided is not None:
            raise self.undecided
        chain = ChainPlan(chain_id=1, block_number=7, block_hash="0x07", kms_contract="0x02")
        approval = ApprovalPlan(
            checked=self.checked, calls=self.missing, blocked=self.blocked, notes=(), new_app_id=""
        )
        if not self.checked:
            return Standing(approval=approval, chain=None)
        code = MISSING if self.missing else BLOCKED if self.blocked else self.waits_for
        return Standing(
            approval=approval,
            chain=chain,
            code=code,
            why="" if not code else f"waits [{code}]",
            final_block=self.final_block,
            lag=self.lag,
            asked=self.asked,
            quorum=self.asked // 2 + 1,
        )

    def attest(self, deployment: Deployment, evidence_url: str) -> Attested:
        del deployment
        assert evidence_url == "http://192.0.2.7:8090/evidence"
        if isinstance(self.attested, DstackError):
            raise self.attested
        return self.attested


def some_deployment(name: str = "web", **fields: Any) -> Deployment:
    made = Deployment(
        name=name,
        uid="c0ffee123456",
        version=1,
        cloud="gcp-tdx",
        goal=Goal.RUNNING,
        step=Step.PREPARE,
        files=Files(project={}),
        created_at=NOW,
        updated_at=NOW,
        since=NOW,
    )
    return msgspec.structs.replace(made, **fields)


def want(store: DeploymentStore, name: str, goal: Goal) -> None:
    """Ask for a goal as the service does."""
    found = store.get(name)
    store.replace(msgspec.structs.replace(found, goal=goal, version=found.version + 1), found.version)


def all_events(store: DeploymentStore, name: str = "web") -> list[Event]:
    found: list[Event] = []
    while page := store.events(name, found[-1].id if found else "", limit=50):
        found += page
    return found
