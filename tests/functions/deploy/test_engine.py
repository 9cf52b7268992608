"""The engine over a cloud in memory: the ways forward, the ways back, and what two runners may do at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.cloud import DeniedError, TransientCloudError
from functions.deploy.engine import LEASE_SECONDS, MAX_ATTEMPTS, Engine, Next
from functions.deploy.record import Deployment, Event, Goal, Lease, ProgressHint, Step
from functions.deploy.steps import APPROVAL_POLL, ATTESTATION_SECONDS, LAUNCH_SECONDS
from functions.deploy.store import ConflictError, NotFoundError
from functions.plan.standing import DISAGREEMENT, NOT_FINAL, REVOKED, UNANSWERED
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.findings import error
from shared.errors import ConfigError, DstackError, InvalidEvidence, StorageError, UnavailableError
from tests.functions.deploy.memory_cloud import (
    CALL,
    Clock,
    MemoryCloud,
    MemoryTools,
    all_events,
    some_deployment,
    some_plan,
    want,
)
from tests.shared.refusal import refuses


class Bench:
    """An engine with all that it stands on."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.blobs = FileBlobs(directory / "blobs")
        self.cloud = MemoryCloud()
        self.tools = MemoryTools()
        self.clock = Clock()

    def engine(self, holder: str = "one", **options: Any) -> Engine:
        return Engine(
            self.store,
            self.blobs,
            {"gcp-tdx": self.cloud},
            self.tools,
            clock=self.clock,
            holder=holder,
            **options,
        )

    def run(self, until: Step | None = None, steps: int = 200) -> Next:
        """Advance, and let the time pass that the engine asks for."""
        engine = self.engine()
        for _ in range(steps):
            after = engine.advance("web")
            if after.seconds is None or self.step is until:
                return after
            self.clock.now += after.seconds
        raise AssertionError(f"not settled after {steps} steps, at {self.step}")

    @property
    def step(self) -> Step:
        return self.store.get("web").step

    @property
    def failure(self) -> str:
        failure = self.store.get("web").failure
        return "" if failure is None else failure.code


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.store.create(some_deployment())
    return made


# ---- the ways forward ----


def test_goes_from_project_to_attested_and_running(bench: Bench) -> None:
    bench.run()
    found = bench.store.get("web")
    assert found.step is Step.RUNNING
    assert found.running is not None
    assert found.running.attested_at > 0
    assert found.running.simulated
    assert [one.kind for one in found.resources] == ["disk", "image", "instance"]
    assert all(one.state == "present" for one in found.resources)
    assert found.lease is None


def test_every_step_leaves_an_event(bench: Bench) -> None:
    bench.run()
    said = [event.message for event in all_events(bench.store)]
    ways = [one for one in said if " -> " in one]
    assert ways == [
        "prepare -> build",
        "build -> propose",
        "propose -> retire",
        "retire -> launch",
        "launch -> await_attestation",
        "await_attestation -> running",
    ]


def test_a_resource_is_recorded_before_it_is_created(bench: Bench) -> None:
    def look(call: str, when: str) -> None:
        if call.startswith("create ") and when == "before":
            kind = call.removeprefix("create ")
            assert bench.store.get("web").resource(kind) is not None

    bench.cloud.on_call = look
    bench.run()
    assert len(bench.cloud.made) == 3


def test_waits_for_governance_and_goes_on_when_it_allows(bench: Bench) -> None:
    bench.tools.missing = (CALL,)
    bench.run(until=Step.AWAIT_APPROVAL)
    engine = bench.engine()
    for _ in range(5):
        bench.clock.now += 60
        engine.advance("web")
    assert bench.step is Step.AWAIT_APPROVAL
    assert bench.cloud.made == []
    bench.tools.missing = ()
    bench.run()
    assert bench.step is Step.RUNNING


def test_names_the_calls_that_governance_must_make(bench: Bench) -> None:
    bench.tools.missing = (CALL,)
    bench.run(until=Step.AWAIT_APPROVAL)
    [event] = [one for one in all_events(bench.store) if "governance must" in one.message]
    assert event.data["calls"][0]["function"] == "addComposeHash"


def test_ends_with_the_calls_where_nobody_waits_for_governance(bench: Bench) -> None:
    found = bench.store.get("web")
    settings = found.settings | {"wait_for_approval": False}
    bench.store.replace(
        msgspec.structs.replace(found, settings=settings, version=found.version + 1), found.version
    )
    bench.tools.missing = (CALL,)
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.approval.missing")
    approved = bench.store.get("web").approved
    assert approved is not None
    assert approved.calls == 1
    [event] = [
        one for one in all_events(bench.store) if "governance must" in one.message and one.data.get("calls")
    ]
    assert event.data["calls"][0]["function"] == "addComposeHash"
    assert bench.cloud.made == []


def wait(bench: Bench, code: str) -> None:
    """Poll for some minutes, and expect nothing but the reason to wait."""
    engine = bench.engine()
    for _ in range(12):
        bench.clock.now += 60
        engine.advance("web")
        found = bench.store.get("web")
        assert found.step is Step.AWAIT_APPROVAL
        assert found.approved is not None
        assert found.approved.code == code
    assert bench.cloud.made == []


@pytest.mark.parametrize("code", [NOT_FINAL, REVOKED])
def test_waits_while_one_view_refuses(bench: Bench, code: str) -> None:
    bench.tools.waits_for = code
    bench.run(until=Step.AWAIT_APPROVAL)
    wait(bench, code)
    bench.tools.waits_for = ""
    bench.run()
    assert bench.step is Step.RUNNING
    assert [event.code for event in all_events(bench.store)].count(code) == 1


def test_looks_again_when_a_grant_can_be_final(bench: Bench) -> None:
    bench.tools.waits_for, bench.tools.lag = NOT_FINAL, 2
    bench.run(until=Step.AWAIT_APPROVAL)
    assert bench.store.get("web").due == bench.clock.now + 2
    bench.tools.lag = 900
    bench.clock.now += 2
    bench.engine().advance("web")
    assert bench.store.get("web").due == bench.clock.now + APPROVAL_POLL


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (UnavailableError("quorum.disagreement", "1 of 2 say so"), DISAGREEMENT),
        (InvalidEvidence("quorum.finalized.regressed", "it went back"), DISAGREEMENT),
        (UnavailableError("quorum.too_few", "1 of 2 answer"), UNANSWERED),
        (ConfigError("plan.chain_id", "the endpoint is of chain 2"), UNANSWERED),
    ],
)
def test_a_deployment_that_waits_outlives_what_endpoints_do(
    bench: Bench, fault: DstackError, code: str
) -> None:
    bench.tools.missing = (CALL,)
    bench.run(until=Step.AWAIT_APPROVAL)
    bench.tools.missing, bench.tools.undecided = (), fault
    wait(bench, code)
    bench.tools.undecided = None
    bench.run()
    assert bench.step is Step.RUNNING


def test_endpoints_that_contradict_each_other_are_waited_out(bench: Bench) -> None:
    bench.tools.undecided = UnavailableError("quorum.disagreement", "1 of 2 say so")
    bench.run(until=Step.AWAIT_APPROVAL)
    wait(bench, DISAGREEMENT)


def test_n57_a_final_block_below_one_that_another_runner_saw_is_no_grant(bench: Bench) -> None:
    bench.tools.missing = (CALL,)
    bench.run(until=Step.AWAIT_APPROVAL)
    bench.tools.missing, bench.tools.final_block = (), 4
    bench.clock.now += 60
    bench.engine("two").advance("web")
    found = bench.store.get("web")
    assert found.approved is not None
    assert (found.step, found.approved.code) == (Step.AWAIT_APPROVAL, "deploy.approval.disagreement")
    assert "at least 5 as seen before" in found.approved.why
    bench.tools.final_block = 5
    bench.run()
    assert bench.step is Step.RUNNING


def test_a_grant_that_is_not_final_ends_where_nobody_waits(bench: Bench) -> None:
    found = bench.store.get("web")
    settings = found.settings | {"wait_for_approval": False}
    bench.store.replace(
        msgspec.structs.replace(found, settings=settings, version=found.version + 1), found.version
    )
    bench.tools.waits_for = NOT_FINAL
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, NOT_FINAL)


def test_says_where_an_approval_rests_on_one_endpoint(bench: Bench) -> None:
    bench.tools.asked = 1
    bench.run()
    said = [event.message for event in all_events(bench.store)]
    assert "governance allows this deployment, by the word of one endpoint" in said
    approved = bench.store.get("web").approved
    assert approved is not None
    assert (approved.asked, approved.quorum) == (1, 1)


def test_what_no_call_can_allow_fails(bench: Bench) -> None:
    bench.tools.blocked = ("the contract's owner renounced it",)
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.approval.blocked")


def test_without_a_chain_it_says_that_nobody_was_asked(bench: Bench) -> None:
    bench.tools.checked = False
    bench.run()
    found = bench.store.get("web")
    assert found.step is Step.RUNNING
    assert found.approved is not None
    assert not found.approved.is_asked


def test_stops_and_starts_and_is_attested_anew(bench: Bench) -> None:
    bench.run()
    first = bench.store.get("web").running
    want(bench.store, "web", Goal.STOPPED)
    bench.run()
    stopped = bench.store.get("web")
    assert stopped.step is Step.STOPPED
    assert stopped.running is not None
    assert stopped.running.attested_at == 0
    want(bench.store, "web", Goal.RUNNING)
    bench.run()
    again = bench.store.get("web").running
    assert bench.step is Step.RUNNING
    assert first is not None
    assert again is not None
    assert again.attested_at > first.attested_at
    assert len(bench.cloud.made) == 3


def test_remove_leaves_nothing(bench: Bench) -> None:
    bench.run()
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    assert bench.step is Step.REMOVED
    assert bench.cloud.things == {}
    assert all(one.state == "gone" for one in bench.store.get("web").resources)


def test_remove_finds_what_was_never_recorded(bench: Bench) -> None:
    bench.run()
    bench.cloud.things["disk", "stray"] = {"uid": "c0ffee123456", "polls": 0, "status": "RUNNING"}
    bench.cloud.things["disk", "foreign"] = {"uid": "another", "polls": 0, "status": "RUNNING"}
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    assert list(bench.cloud.things) == [("disk", "foreign")]


def test_a_new_plan_replaces_the_machine_and_keeps_its_disk(bench: Bench) -> None:
    bench.run()
    bench.tools.plan = some_plan("b")
    found = bench.store.get("web")
    bench.store.replace(
        msgspec.structs.replace(found, step=Step.PREPARE, version=found.version + 1), found.version
    )
    bench.run()
    made = bench.cloud.made
    assert made.count(("instance", "web-instance")) == 2
    assert made.count(("disk", "web-disk")) == 1
    running = bench.store.get("web").running
    assert running is not None
    assert running.plan_id == bench.tools.plan.plan_id


def test_the_same_plan_again_leaves_the_machine_alone(bench: Bench) -> None:
    bench.run()
    found = bench.store.get("web")
    bench.store.replace(
        msgspec.structs.replace(found, step=Step.PREPARE, version=found.version + 1), found.version
    )
    bench.run()
    assert bench.step is Step.RUNNING
    assert bench.cloud.made.count(("instance", "web-instance")) == 1


def test_another_ciphertext_replaces_the_machine_of_the_same_plan(bench: Bench) -> None:
    bench.run()
    found = bench.store.get("web")
    files = msgspec.structs.replace(found.files, encrypted_env=bench.blobs.put(b"ciphertext"))
    bench.store.replace(
        msgspec.structs.replace(found, files=files, step=Step.PREPARE, version=found.version + 1),
        found.version,
    )
    bench.run()
    assert bench.cloud.made.count(("instance", "web-instance")) == 2
    running = bench.store.get("web").running
    assert running is not None
    assert running.encrypted_env == files.encrypted_env


# ---- goals that change on the way ----


@pytest.mark.parametrize(
    "until", [Step.BUILD, Step.PROPOSE, Step.LAUNCH, Step.AWAIT_ATTESTATION, Step.RUNNING]
)
def test_may_be_removed_at_any_point(bench: Bench, until: Step) -> None:
    bench.run(until=until)
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    assert bench.step is Step.REMOVED
    assert bench.cloud.things == {}


@pytest.mark.parametrize("until", [Step.BUILD, Step.LAUNCH, Step.AWAIT_ATTESTATION, Step.RUNNING])
def test_may_be_stopped_at_any_point(bench: Bench, until: Step) -> None:
    bench.run(until=until)
    want(bench.store, "web", Goal.STOPPED)
    bench.run()
    assert bench.step is Step.STOPPED
    assert all(
        one["status"] == "TERMINATED" for key, one in bench.cloud.things.items() if key[0] == "instance"
    )
    want(bench.store, "web", Goal.RUNNING)
    bench.run()
    assert bench.step is Step.RUNNING


def test_a_goal_that_changes_during_a_step_is_kept(bench: Bench) -> None:
    def change(call: str, when: str) -> None:
        if call == "create instance" and when == "after":
            want(bench.store, "web", Goal.REMOVED)

    bench.cloud.on_call = change
    bench.run()
    assert bench.step is Step.REMOVED
    assert bench.cloud.things == {}


def test_what_was_removed_can_be_deployed_again_under_its_name(bench: Bench) -> None:
    bench.run()
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    bench.store.create(some_deployment(uid="another12345"))
    bench.run()
    assert bench.step is Step.RUNNING
    assert all(event.uid == "another12345" for event in all_events(bench.store))


# ---- failures ----


def test_a_finding_of_the_cloud_stops_it_before_anything_is_built(bench: Bench) -> None:
    bench.cloud.findings = (error("gcp.quota", "CPUS", "has 0 of 4 left"),)
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "gcp.quota")
    assert bench.tools.calls == []


def test_a_refused_plan_is_not_deployed(bench: Bench) -> None:
    bench.tools.plan = some_plan(outcome="refused", findings=(error("lint.image.digest", "web", "has none"),))
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "lint.image.digest")
    assert bench.cloud.made == []


def test_a_busy_cloud_is_asked_again_later(bench: Bench) -> None:
    left = [3]

    def busy(call: str, when: str) -> None:
        if call == "create image" and when == "before" and left[0]:
            left[0] -= 1
            raise TransientCloudError("memory.busy", "too many requests")

    bench.cloud.on_call = busy
    bench.run()
    assert bench.step is Step.RUNNING
    waits = [event.data["retry"] for event in all_events(bench.store) if event.code == "memory.busy"]
    assert waits == [2, 4, 8]


def test_a_cloud_that_stays_busy_is_given_up_and_nothing_stays(bench: Bench) -> None:
    def busy(call: str, when: str) -> None:
        if call == "create instance" and when == "before":
            raise TransientCloudError("memory.busy", "too many requests")

    bench.cloud.on_call = busy
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "memory.busy")
    assert list(bench.cloud.things) == [("disk", "web-disk")]
    assert bench.cloud.calls.count("create instance") == MAX_ATTEMPTS


def test_a_removal_is_never_given_up(bench: Bench) -> None:
    bench.run()
    failures = [3 * MAX_ATTEMPTS]

    def busy(call: str, when: str) -> None:
        if call.startswith("delete") and when == "before" and failures[0]:
            failures[0] -= 1
            raise TransientCloudError("memory.busy", "too many requests")

    bench.cloud.on_call = busy
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    assert bench.step is Step.REMOVED
    assert bench.cloud.things == {}


def test_a_failed_launch_is_rolled_back_and_says_what_to_do(bench: Bench) -> None:
    def refuse(call: str, when: str) -> None:
        if call == "create instance" and when == "before":
            raise DeniedError("memory.quota", "no quota is left", "ask for more")

    bench.cloud.on_call = refuse
    bench.run()
    failure = bench.store.get("web").failure
    assert failure is not None
    assert (failure.code, failure.hint, failure.step) == ("memory.quota", "ask for more", Step.LAUNCH)
    assert list(bench.cloud.things) == [("disk", "web-disk")]


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({"confidential": ""}, "deploy.machine.confidential"),
        ({"confidential": "SEV"}, "deploy.machine.confidential"),
        ({"machine_type": "e2-micro"}, "deploy.machine.type"),
        ({"traits": {"vtpm": False}}, "deploy.machine.vtpm"),
        ({"traits": {}}, "deploy.machine.vtpm"),
    ],
)
def test_n80_a_machine_that_is_not_the_one_ordered_does_not_stay(
    bench: Bench, lie: dict[str, Any], code: str
) -> None:
    bench.cloud.machine = lie
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, code)
    assert ("instance", "web-instance") not in bench.cloud.things


def guest_fails(bench: Bench) -> None:
    """Have the guest say that its boot failed."""
    told = ProgressHint(
        at=bench.clock(), boot="00" * 8, sequence=9, step="environment", status="failed", code="env.x"
    )
    found = bench.store.get("web")
    bench.store.replace(
        msgspec.structs.replace(found, version=found.version + 1, progress=(told,)), found.version
    )


def test_a_failure_tells_what_the_guest_said_of_it(bench: Bench) -> None:
    bench.run(until=Step.AWAIT_ATTESTATION)
    guest_fails(bench)
    bench.tools.attested = InvalidEvidence("evidence.workload", "another workload")
    bench.run()
    failure = bench.store.get("web").failure
    assert failure is not None
    assert failure.code == "evidence.workload"
    assert failure.message == "another workload; the guest said, unverified, that environment failed [env.x]"


def test_a_guest_that_says_that_it_failed_and_proves_what_it_runs_is_running(bench: Bench) -> None:
    bench.run(until=Step.AWAIT_ATTESTATION)
    guest_fails(bench)
    bench.run()
    assert (bench.step, bench.failure) == (Step.RUNNING, "")


def test_evidence_of_another_workload_ends_the_machine(bench: Bench) -> None:
    bench.tools.attested = InvalidEvidence("deploy.evidence.workload", "another workload")
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.evidence.workload")
    assert ("instance", "web-instance") not in bench.cloud.things


def test_an_app_that_never_answers_is_given_up(bench: Bench) -> None:
    bench.tools.attested = UnavailableError("net.timeout", "no answer")
    began = bench.clock.now
    bench.run(steps=400)
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.attestation.timeout")
    assert bench.clock.now - began >= ATTESTATION_SECONDS


def test_a_machine_that_dies_before_it_answers_is_noticed(bench: Bench) -> None:
    bench.run(until=Step.AWAIT_ATTESTATION)
    bench.tools.attested = UnavailableError("net.timeout", "no answer")
    bench.cloud.things["instance", "web-instance"]["status"] = "TERMINATED"
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.machine.down")


def test_a_launch_that_never_ends_is_given_up(bench: Bench) -> None:
    bench.cloud.boot_polls = 10**9
    began = bench.clock.now
    bench.run(steps=LAUNCH_SECONDS)
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.timeout")
    assert bench.clock.now - began > LAUNCH_SECONDS


def test_a_runner_without_the_cloud_fails_it(bench: Bench) -> None:
    bench.store.create(some_deployment("other", cloud="aws-nitro"))
    engine = bench.engine()
    assert engine.advance("other").seconds is None
    failure = bench.store.get("other").failure
    assert failure is not None
    assert failure.code == "deploy.cloud"


def test_a_failed_deployment_can_be_removed(bench: Bench) -> None:
    bench.cloud.machine = {"confidential": ""}
    bench.run()
    want(bench.store, "web", Goal.REMOVED)
    bench.run()
    assert bench.cloud.things == {}
    assert bench.step is Step.REMOVED


def test_a_machine_that_was_stopped_for_a_day_has_its_time_to_start(bench: Bench) -> None:
    bench.run()
    want(bench.store, "web", Goal.STOPPED)
    bench.run()
    bench.clock.now += 86_400
    want(bench.store, "web", Goal.RUNNING)
    bench.run()
    assert (bench.step, bench.failure) == (Step.RUNNING, "")


@pytest.mark.parametrize("until", [Step.LAUNCH, Step.AWAIT_ATTESTATION])
def test_time_in_which_no_runner_was_there_counts_for_no_step(bench: Bench, until: Step) -> None:
    bench.run(until=until)
    bench.cloud.boot_polls = 3
    bench.tools.attested = UnavailableError("net.timeout", "no answer")
    bench.clock.now += 2 * LAUNCH_SECONDS
    bench.engine().advance("web")
    bench.tools.attested = MemoryTools().attested
    bench.run()
    assert (bench.step, bench.failure) == (Step.RUNNING, "")


def test_a_start_that_never_ends_is_given_up(bench: Bench) -> None:
    bench.run()
    want(bench.store, "web", Goal.STOPPED)
    bench.run()
    bench.cloud.boot_polls = 10**9
    want(bench.store, "web", Goal.RUNNING)
    bench.run(steps=LAUNCH_SECONDS)
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.timeout")


def test_n80_a_machine_that_starts_as_another_one_does_not_stay(bench: Bench) -> None:
    bench.run()
    want(bench.store, "web", Goal.STOPPED)
    bench.run()
    bench.cloud.machine = {"confidential": ""}
    want(bench.store, "web", Goal.RUNNING)
    bench.run()
    assert (bench.step, bench.failure) == (Step.FAILED, "deploy.machine.confidential")
    assert list(bench.cloud.things) == [("disk", "web-disk")]


def _deny_removal(call: str, when: str) -> None:
    if call.startswith("delete") and when == "before":
        raise DeniedError("memory.denied", "the role may not delete", "let it")


def test_a_removal_that_is_refused_rests_and_says_what_to_do(bench: Bench) -> None:
    bench.run()
    bench.cloud.on_call = _deny_removal
    want(bench.store, "web", Goal.REMOVED)
    bench.run(steps=3)
    found = bench.store.get("web")
    assert (found.step, found.is_resting) == (Step.FAILED, True)
    assert found.failure is not None
    assert (found.failure.code, found.failure.hint) == ("memory.denied", "let it")
    calls = len(bench.cloud.calls)
    assert bench.engine().advance("web") == Next(None, Step.FAILED)
    assert len(bench.cloud.calls) == calls


@pytest.fixture
def left(bench: Bench) -> Bench:
    """A launch that was refused, and whose machine could not be taken away."""
    bench.cloud.machine = {"confidential": ""}
    bench.cloud.on_call = _deny_removal
    bench.run()
    bench.cloud.machine = {}
    bench.cloud.on_call = lambda _call, _when: None
    assert bench.cloud.things["instance", "web-instance"]["status"] == "RUNNING"
    return bench


def test_a_rollback_that_is_refused_hides_no_verdict(left: Bench) -> None:
    failure = left.store.get("web").failure
    assert failure is not None
    assert (failure.code, failure.refused, failure.hint) == ("deploy.machine.confidential", True, "let it")
    assert "still there: the role may not delete" in failure.message


def test_what_a_refused_rollback_left_is_no_machine_of_the_next_plan(left: Bench) -> None:
    found = left.store.get("web")
    left.tools.plan = some_plan("b")
    left.store.replace(
        msgspec.structs.replace(found, step=Step.PREPARE, version=found.version + 1), found.version
    )
    left.run()  # the cloud in memory takes no machine of another plan
    assert left.step is Step.RUNNING
    assert left.cloud.made.count(("instance", "web-instance")) == 2


def test_what_a_refused_rollback_left_is_stopped(left: Bench) -> None:
    found = left.store.get("web")
    left.store.replace(
        msgspec.structs.replace(found, step=Step.PREPARE, goal=Goal.STOPPED, version=found.version + 1),
        found.version,
    )
    left.run()
    assert left.step is Step.STOPPED
    assert left.cloud.things["instance", "web-instance"]["status"] == "TERMINATED"


def test_what_nobody_foresaw_is_tried_again_and_then_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def build(_: object) -> None:
        tries.append(1)
        raise OSError(28, "no space left for a secret name")

    monkeypatch.setattr(bench.tools, "build", build)
    bench.run()
    assert (bench.step, bench.failure, len(tries)) == (Step.FAILED, "deploy.internal", MAX_ATTEMPTS)
    assert not any("secret" in event.message for event in all_events(bench.store))
    assert caplog.records[0].exc_info is not None


# ---- runners beside each other ----


def test_a_runner_keeps_away_while_another_holds_the_lease(bench: Bench) -> None:
    found = bench.store.get("web")
    lease = Lease("two", "token", bench.clock.now + 50)
    bench.store.replace(msgspec.structs.replace(found, lease=lease, version=2), 1)
    assert bench.engine().advance("web") == Next(50, Step.PREPARE, "two is at work on it")
    bench.clock.now += 50
    bench.run()
    assert bench.step is Step.RUNNING


def test_a_dead_runner_of_this_machine_is_not_waited_for(bench: Bench) -> None:
    found = bench.store.get("web")
    lease = Lease("dead", "token", bench.clock.now + LEASE_SECONDS)
    bench.store.replace(msgspec.structs.replace(found, lease=lease, version=2), 1)
    engine = bench.engine(is_gone=lambda holder: holder == "dead")
    assert engine.advance("web").step is Step.BUILD


def test_a_runner_that_lost_its_lease_writes_nothing(bench: Bench) -> None:
    other = bench.engine("two")

    def overtake(call: str, when: str) -> None:
        if call == "create image" and when == "after":
            bench.cloud.on_call = lambda _call, _when: None
            bench.clock.now += LEASE_SECONDS + 1
            while other.advance("web").seconds is not None:
                bench.clock.now += 2

    bench.run(until=Step.LAUNCH)
    bench.cloud.on_call = overtake
    assert bench.engine("one").advance("web").why == "another runner took over"
    assert bench.step is Step.RUNNING
    assert len(bench.cloud.made) == 3


def test_calling_too_early_does_nothing(bench: Bench) -> None:
    bench.run(until=Step.LAUNCH)
    engine = bench.engine()
    waiting = engine.advance("web")
    assert waiting.seconds
    calls = len(bench.cloud.calls)
    version = bench.store.get("web").version
    assert engine.advance("web").seconds == waiting.seconds
    assert (len(bench.cloud.calls), bench.store.get("web").version) == (calls, version)


def test_an_unknown_name_is_said_to_be(bench: Bench) -> None:
    with refuses("deploy.unknown", NotFoundError):
        bench.engine().advance("nobody")


def test_a_store_that_fails_stops_the_runner(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("deploy.store", "the disk is full")

    monkeypatch.setattr(bench.store, "replace", fail)
    with pytest.raises(StorageError):
        bench.engine().advance("web")


def test_a_service_that_overtakes_every_write_is_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = bench.store.replace

    def overtaken(deployment: Deployment, expected: int, events: Sequence[Event] = ()) -> None:
        if events:
            found = bench.store.get("web")
            replace(msgspec.structs.replace(found, version=found.version + 1), found.version)
        replace(deployment, expected, events)

    monkeypatch.setattr(bench.store, "replace", overtaken)
    with refuses("deploy.conflict", ConflictError):
        bench.engine().advance("web")
