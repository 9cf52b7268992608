"""The sweep finds what nobody advances, and leaves alone what rests, waits or is at work."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.reconcile import OVERDUE_SECONDS, SPREAD_SECONDS, is_overdue, sweep
from functions.deploy.record import Deployment, Failure, Goal, Lease, Step
from functions.stores.sqlite import SqliteStore
from shared.errors import StorageError
from tests.functions.deploy.memory_cloud import NOW, some_deployment
from tests.shared.refusal import refuses

OLD = NOW - OVERDUE_SECONDS
FAILURE = Failure(code="x", message="x", hint="x", step=Step.LAUNCH, at=OLD)


def deployment(**changes: Any) -> Deployment:
    return msgspec.structs.replace(some_deployment(), **{"updated_at": OLD, "due": OLD, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"step": Step.LAUNCH},
        {"step": Step.LAUNCH, "due": 0},
        {"step": Step.AWAIT_APPROVAL},
        # somebody asked, and the message that tells so is lost
        {"step": Step.RUNNING, "goal": Goal.STOPPED, "due": 0},
        {"step": Step.STOPPED, "goal": Goal.REMOVED, "due": 0},
        {"step": Step.PREPARE, "goal": Goal.STOPPED},
        {"step": Step.FAILED, "goal": Goal.REMOVED, "failure": FAILURE},
        # a runner died, and its lease ran out
        {"step": Step.LAUNCH, "lease": Lease("runner", "token", OLD)},
        {"step": Step.ROLLBACK, "failure": FAILURE},
    ],
)
def test_what_nobody_advances_is_overdue(changes: dict[str, Any]) -> None:
    assert is_overdue(deployment(**changes), NOW)
    assert not is_overdue(deployment(**changes), NOW - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": Step.RUNNING, "goal": Goal.RUNNING},
        {"step": Step.STOPPED, "goal": Goal.STOPPED},
        {"step": Step.REMOVED, "goal": Goal.REMOVED},
        {"step": Step.FAILED, "goal": Goal.RUNNING, "failure": FAILURE},
        {"step": Step.LAUNCH, "due": NOW + 60},
        {"step": Step.LAUNCH, "updated_at": NOW - 1},
        {"step": Step.BUILD, "lease": Lease("runner", "token", NOW + 600)},
        {"step": Step.BUILD, "lease": Lease("runner", "token", OLD + 1)},
    ],
)
def test_what_rests_waits_or_is_at_work_is_left_alone(changes: dict[str, Any]) -> None:
    assert not is_overdue(deployment(**changes), NOW)


def test_a_sweep_finds_all_of_many_and_spreads_them(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "deployments.sqlite")
    names = [f"app{number:03d}" for number in range(130)]
    for number, name in enumerate(names):
        step = Step.LAUNCH if number % 2 else Step.RUNNING
        store.create(deployment(name=name, uid=name, step=step))
    scheduled: list[tuple[str, int]] = []
    found = sweep(store, lambda name, seconds: scheduled.append((name, seconds)), NOW)
    assert found == names[1::2] == [name for name, _ in scheduled]
    assert [seconds for _, seconds in scheduled] == [number % SPREAD_SECONDS for number in range(65)]
    store.close()


def test_a_sweep_of_nothing_schedules_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "deployments.sqlite")
    assert sweep(store, lambda *_: pytest.fail("scheduled"), NOW) == []
    store.close()


def test_a_queue_that_fails_is_said(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "deployments.sqlite")
    store.create(deployment(step=Step.LAUNCH))

    def full(name: str, seconds: int) -> None:
        raise StorageError("queue.full", f"{name} in {seconds} s")

    with refuses("queue.full", StorageError):
        sweep(store, full, NOW)
    store.close()
