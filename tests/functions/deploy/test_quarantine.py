"""Governance's hold on a deployment, over the engine and a cloud in memory."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.cloud import DeniedError
from functions.deploy.engine import MAX_ATTEMPTS, Engine
from functions.deploy.quarantine import Quarantines, at_stake, next_up
from functions.deploy.reconcile import is_overdue
from functions.deploy.record import Deployment, Goal, Quarantine, Step, Workload
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.errors import UnavailableError
from tests.functions.deploy.memory_cloud import (
    CALL,
    Clock,
    MemoryCloud,
    MemoryTools,
    some_deployment,
    some_plan,
)
from tests.shared.refusal import refuses

HELD = Quarantine(
    reason="Compose hash not allowed", chain_id=1, block_number=7, block_hash="07" * 32, at=1_800_000_000
)
RUNS = Workload(platform="gcp", app_id="22" * 20, compose_hash="33" * 32, os_image_hash="44" * 32)


class Bench:
    """An engine, and governance beside it."""

    def __init__(self, directory: Path) -> None:
        self.store = SqliteStore(directory / "deployments.sqlite")
        self.cloud, self.tools, self.clock = MemoryCloud(), MemoryTools(), Clock()
        self.called: list[str] = []
        blobs = FileBlobs(directory / "blobs")
        self.engine = Engine(
            self.store, blobs, {"gcp-tdx": self.cloud}, self.tools, clock=self.clock, holder="one"
        )
        self.quarantines = Quarantines(self.store, lambda name, _: self.called.append(name), self.clock)
        self.store.create(some_deployment())

    def settle(self, *, until: Step | None = None) -> Step:
        """Advance until there is nothing to do, or at a step."""
        for _ in range(300):
            after = self.engine.advance("web")
            if after.seconds is None or (until is not None and self.found.step is until):
                return self.found.step
            self.clock.now += after.seconds
        raise AssertionError(f"not settled, at {self.found.step}")

    @property
    def found(self) -> Deployment:
        return self.store.get("web")

    def impose(self, judged: Workload = RUNS, **changes: Any) -> bool:
        held = msgspec.structs.replace(HELD, **changes)
        return self.quarantines.impose("web", self.found.uid, judged, held)

    def change(self, **fields: Any) -> None:
        found = self.found
        self.store.replace(msgspec.structs.replace(found, **fields, version=found.version + 1), found.version)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def running(bench: Bench) -> Bench:
    assert bench.settle() is Step.RUNNING
    return bench


def test_a_machine_that_is_up_is_recorded_with_what_it_runs(running: Bench) -> None:
    assert running.found.launched == RUNS == at_stake(running.found)


def test_a_quarantine_stops_the_machine_and_keeps_what_the_user_wants(running: Bench) -> None:
    assert running.impose()
    assert running.called == ["web"]
    assert running.settle() is Step.STOPPED
    assert running.cloud.things["instance", "web-instance"]["status"] == "TERMINATED"
    found = running.found
    assert (found.goal, found.launched, found.status, found.is_resting) == (
        Goal.RUNNING,
        None,
        "quarantined",
        True,
    )
    assert not is_overdue(found, running.clock.now + 10_000)


def test_a_quarantine_that_comes_twice_is_imposed_once(running: Bench) -> None:
    assert running.impose()
    version = running.found.version
    assert not running.impose(block_number=8)
    assert running.found.version == version


def test_a_message_that_was_lost_after_the_write_is_sent_again(running: Bench) -> None:
    def fail(_name: str, _seconds: int) -> None:
        raise UnavailableError("queue.down", "the queue is down")

    broken = Quarantines(running.store, fail, running.clock)
    with refuses("queue.down", UnavailableError):
        broken.impose("web", running.found.uid, RUNS, HELD)
    assert running.found.quarantine == HELD
    assert not running.impose()
    assert running.called == ["web"]


def test_a_quarantine_that_is_held_on_is_told_to_nobody_and_keeps_its_time(running: Bench) -> None:
    running.impose()
    newer = msgspec.structs.replace(HELD, block_number=9, reason="Device not allowed", at=HELD.at + 60)
    events = len(running.store.events("web", "", 100))
    assert running.quarantines.hold("web", running.found.uid, HELD, newer)
    assert running.found.quarantine == msgspec.structs.replace(newer, at=HELD.at)
    assert len(running.store.events("web", "", 100)) == events


@pytest.mark.parametrize(("judged", "block"), [(8, 9), (7, 6)], ids=["another", "older"])
def test_a_quarantine_is_held_on_by_its_own_newer_state_alone(
    running: Bench, judged: int, block: int
) -> None:
    running.impose()
    held, newer = (msgspec.structs.replace(HELD, block_number=number) for number in (judged, block))
    assert running.quarantines.hold("web", running.found.uid, held, newer)
    assert running.found.quarantine == HELD


def test_a_quarantine_that_was_lifted_is_held_on_no_more(running: Bench) -> None:
    running.impose()
    running.quarantines.lift("web", running.found.uid, HELD, "allowed")
    newer = msgspec.structs.replace(HELD, block_number=9)
    assert not running.quarantines.hold("web", running.found.uid, HELD, newer)
    assert running.found.quarantine is None


def test_another_quarantine_than_was_judged_is_not_lifted(running: Bench) -> None:
    running.impose()
    newer = msgspec.structs.replace(HELD, block_number=9)
    running.quarantines.hold("web", running.found.uid, HELD, newer)
    assert not running.quarantines.lift("web", running.found.uid, HELD, "allowed")
    assert running.found.quarantine == newer


def test_what_is_let_go_runs_again_and_is_attested_anew(running: Bench) -> None:
    running.impose()
    running.settle()
    assert running.quarantines.lift("web", running.found.uid, HELD, "allowed")
    assert running.settle() is Step.RUNNING
    assert running.found.launched == RUNS
    assert "start instance" in running.cloud.calls


def test_what_its_user_stopped_stays_stopped_when_it_is_let_go(running: Bench) -> None:
    running.impose()
    running.settle()
    running.change(goal=Goal.STOPPED)
    running.quarantines.lift("web", running.found.uid, HELD, "allowed")
    assert running.settle() is Step.STOPPED


def test_a_launch_under_way_is_stopped_when_the_machine_is_there(bench: Bench) -> None:
    bench.settle(until=Step.LAUNCH)
    assert at_stake(bench.found) == RUNS
    bench.impose()
    assert bench.settle() is Step.STOPPED


def test_a_stop_that_was_given_up_is_begun_again(running: Bench) -> None:
    running.impose()

    def fail(call: str, _when: str) -> None:
        if call == "stop instance":
            raise DeniedError("memory.denied", "no right to stop", "give it")

    running.cloud.on_call = fail
    assert running.settle() is Step.FAILED
    assert running.found.launched == RUNS
    running.cloud.on_call = lambda _call, _when: None
    assert running.impose()
    assert running.settle() is Step.STOPPED
    assert MAX_ATTEMPTS > 1


def test_another_use_of_the_name_is_left_alone(running: Bench) -> None:
    assert not running.quarantines.impose("web", "another", RUNS, HELD)
    assert not running.quarantines.lift("nobody", "another", HELD, "allowed")
    assert running.found.quarantine is None


def test_another_workload_than_was_judged_is_left_alone(running: Bench) -> None:
    assert not running.impose(msgspec.structs.replace(RUNS, compose_hash="55" * 32))
    assert running.found.quarantine is None


def test_a_removal_ends_a_quarantine(running: Bench) -> None:
    running.impose()
    running.settle()
    running.change(goal=Goal.REMOVED)
    assert running.settle() is Step.REMOVED
    assert running.found.quarantine is None


def test_who_waits_for_approval_is_asked_about_now(bench: Bench) -> None:
    bench.tools.missing = (CALL,)
    bench.settle(until=Step.AWAIT_APPROVAL)
    assert (at_stake(bench.found), next_up(bench.found)) == (None, RUNS)
    bench.tools.missing = ()
    assert bench.engine.advance("web").seconds
    assert bench.quarantines.resume("web", bench.found.uid)
    assert not bench.quarantines.resume("web", bench.found.uid)
    assert bench.engine.advance("web").step is Step.RETIRE


def test_an_old_machine_beside_a_plan_that_waits_counts_for_what_it_runs(running: Bench) -> None:
    running.tools.plan = msgspec.structs.replace(
        some_plan("b"), compose=msgspec.structs.replace(some_plan().compose, compose_hash="66" * 32)
    )
    running.tools.missing = (CALL,)
    running.change(step=Step.PREPARE)
    running.settle(until=Step.AWAIT_APPROVAL)
    assert at_stake(running.found) == RUNS
    new = next_up(running.found)
    assert new is not None
    assert new.compose_hash == "66" * 32
    running.impose()
    assert running.settle() is Step.STOPPED
    # what is held is then judged by the new plan
    assert next_up(running.found) == new
    running.tools.missing = ()
    running.quarantines.lift("web", running.found.uid, HELD, "allowed")
    assert running.settle() is Step.RUNNING
    assert running.found.launched == new


@pytest.mark.parametrize("step", [Step.PREPARE, Step.BUILD, Step.PROPOSE, Step.AWAIT_APPROVAL, Step.FAILED])
def test_what_has_no_machine_has_nothing_at_stake(step: Step) -> None:
    assert at_stake(some_deployment(step=step)) is None
