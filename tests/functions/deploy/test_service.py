"""What a user asks ends in the record once, whoever else writes to it, and a runner is called."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.deploy.cloud import FirewallRule, TransientCloudError
from functions.deploy.record import MAX_REQUESTS, Deployment, Failure, Goal, Lease, Resource, Step
from functions.deploy.request import Options, RuleBody
from functions.deploy.service import DeploymentService
from functions.deploy.store import ConflictError, NotFoundError
from functions.stores.sqlite import SqliteStore
from shared.errors import ConfigError, DstackError, ProtocolError
from tests.functions.deploy.uploads import CIPHERTEXT, NOW, Bench, project, upload
from tests.shared.refusal import refuses

FAILURE = Failure(code="gcp.quota", message="no quota", hint="ask for more", step=Step.LAUNCH, at=NOW)
RULE = RuleBody(action="allow", port=443, sources=("192.0.2.0/24",))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# ---- create ----


def test_a_new_deployment_is_written_down_and_a_runner_called(bench: Bench) -> None:
    made = bench.service.create(
        upload(
            encrypted_env=CIPHERTEXT,
            env_names=("B", "A"),
            options=Options(app_id="11" * 20),
            wait_for_approval=False,
        ),
        caller="repository 1001",
    )
    assert bench.store.get("web") == made
    assert (made.cloud, made.goal, made.step, made.version) == ("gcp-tdx", Goal.RUNNING, Step.PREPARE, 1)
    assert {
        name: bench.blobs.get(digest, 1 << 20) for name, digest in made.files.project.items()
    } == project()
    assert bench.blobs.get(made.files.encrypted_env, 1 << 20) == CIPHERTEXT
    assert made.settings == {"env_names": ["A", "B"], "app_id": "11" * 20, "wait_for_approval": False}
    assert (made.created_by, made.created_at) == ("repository 1001", NOW)
    assert bench.calls == [("web", 0)]
    (event,) = bench.service.events("web").events
    assert (event.message, event.data) == ("deploy was asked for", {"caller": "repository 1001"})


def test_a_name_that_is_used_is_not_deployed_over_unasked(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    with refuses("deploy.exists", ConflictError):
        bench.service.create(upload(files=project(name="other")))


def test_replace_deploys_over_it(bench: Bench) -> None:
    first = bench.service.create(upload())
    bench.settle("web", Step.FAILED, failure=FAILURE, attempt=3, due=NOW + 99, since=1)
    bench.now += 10
    files = project(name="other")
    second = bench.service.create(upload(files=files, replace=True))
    assert second.uid == first.uid
    assert (second.step, second.failure, second.attempt, second.due) == (Step.PREPARE, None, 0, 0)
    assert second.since == NOW + 10
    assert second.files != first.files
    assert second.planned is not None


def test_a_name_that_was_removed_is_free(bench: Bench) -> None:
    first = bench.service.create(upload())
    bench.change("web", goal=Goal.REMOVED, step=Step.REMOVED)
    second = bench.service.create(upload())
    assert second.uid != first.uid
    assert second.version == 1


def test_a_cloud_that_is_not_reached_is_refused(bench: Bench) -> None:
    with refuses("deploy.cloud", ConfigError):
        bench.service.create(upload(cloud="local"))
    with refuses("deploy.unknown", NotFoundError):
        bench.service.get("web")


def test_what_is_no_project_is_not_stored(bench: Bench, tmp_path: Path) -> None:
    with refuses("deploy.request.plaintext_env", ProtocolError):
        bench.service.create(upload(files=project() | {".env": b"TOKEN=hunter2"}))
    assert list((tmp_path / "blobs").iterdir()) == []


# ---- redeploy ----


@pytest.mark.parametrize("step", [Step.RUNNING, Step.STOPPED, Step.FAILED])
def test_a_deployment_at_rest_is_deployed_anew(bench: Bench, step: Step) -> None:
    bench.service.create(upload())
    bench.settle("web", step, goal=Goal.STOPPED if step is Step.STOPPED else Goal.RUNNING)
    again = bench.service.redeploy(upload(files=project(name="other")))
    assert (again.goal, again.step) == (Goal.RUNNING, Step.PREPARE)


def test_what_failed_and_left_nothing_is_deployed_over_without_a_word(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web", Step.FAILED, failure=FAILURE)
    again = bench.service.create(upload(files=project(name="other")))
    assert (again.step, again.failure) == (Step.PREPARE, None)

    bench.settle("web", Step.FAILED, failure=FAILURE, resources=(Resource(kind="instance", name="web"),))
    with refuses("deploy.exists", ConflictError):
        bench.service.create(upload(files=project(name="third")))


@pytest.mark.parametrize("step", [Step.AWAIT_APPROVAL, Step.REMOVE, Step.FAILED])
def test_what_is_to_be_removed_is_not_deployed_over(bench: Bench, step: Step) -> None:
    bench.service.create(upload())
    failure = msgspec.structs.replace(FAILURE, step=Step.REMOVE) if step is Step.FAILED else None
    bench.settle("web", step, goal=Goal.REMOVED, failure=failure)
    with refuses("deploy.removed", ConflictError):
        bench.service.redeploy(upload(files=project(name="other")))


def test_a_removal_that_was_refused_is_tried_again_when_it_is_asked_for_again(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle(
        "web", Step.FAILED, goal=Goal.REMOVED, failure=msgspec.structs.replace(FAILURE, step=Step.REMOVE)
    )
    with refuses("deploy.removed", ConflictError):
        bench.service.retry("web")
    calls = len(bench.calls)
    after = bench.service.remove("web", key="again")
    assert (after.step, after.goal, after.failure) == (Step.REMOVE, Goal.REMOVED, None)
    assert len(bench.calls) == calls + 1


@pytest.mark.parametrize(
    "step",
    [step for step in Step if step not in {Step.RUNNING, Step.FAILED, Step.REMOVED, Step.AWAIT_APPROVAL}],
)
def test_one_that_is_under_way_is_busy(bench: Bench, step: Step) -> None:
    bench.service.create(upload())
    found = bench.change("web", step=step)
    with refuses("deploy.busy", ConflictError):
        bench.service.redeploy(upload(files=project(name="other")))
    assert bench.store.get("web") == found


def test_one_that_waits_for_governance_can_be_deployed_over(bench: Bench) -> None:
    bench.service.create(upload())
    bench.change("web", step=Step.AWAIT_APPROVAL)
    assert bench.service.redeploy(upload(files=project(name="other"))).step is Step.PREPARE


def test_one_that_a_runner_holds_is_busy(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web", lease=Lease("runner", "1", NOW + 60))
    with refuses("deploy.busy", ConflictError):
        bench.service.redeploy(upload(files=project(name="other")))
    bench.now += 61
    assert bench.service.redeploy(upload(files=project(name="other"))).step is Step.PREPARE


def test_there_must_be_one_to_deploy_anew(bench: Bench) -> None:
    with refuses("deploy.unknown", NotFoundError):
        bench.service.redeploy(upload())
    bench.service.create(upload())
    bench.change("web", goal=Goal.REMOVED, step=Step.REMOVED)
    with refuses("deploy.unknown", NotFoundError):
        bench.service.redeploy(upload())


def test_it_stays_on_its_cloud(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    with refuses("deploy.cloud_change", ConflictError):
        bench.service.redeploy(upload(files=project(platform="nitro")))


# ---- goals ----


def test_stop_start_and_remove_write_down_a_goal(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    for ask, goal in (
        (bench.service.stop, Goal.STOPPED),
        (bench.service.start, Goal.RUNNING),
        (bench.service.remove, Goal.REMOVED),
    ):
        before = bench.store.get("web")
        after = ask("web", caller="me")
        assert after == msgspec.structs.replace(before, goal=goal, version=before.version + 1)
    assert [event.message for event in bench.service.events("web").events] == [
        "deploy was asked for",
        "stop was asked for",
        "start was asked for",
        "remove was asked for",
    ]


def test_asking_twice_writes_once_and_calls_a_runner_again(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    first = bench.service.stop("web")
    bench.calls.clear()
    assert bench.service.stop("web") == first
    assert bench.calls == [("web", 0)]


def test_nothing_is_called_where_nothing_is_to_be_done(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.calls.clear()
    bench.service.start("web")
    assert bench.calls == []


def test_a_goal_may_change_while_a_runner_is_at_work(bench: Bench) -> None:
    bench.service.create(upload())
    lease = Lease("runner", "1", NOW + 60)
    bench.change("web", step=Step.LAUNCH, lease=lease)
    after = bench.service.remove("web")
    assert (after.goal, after.step, after.lease) == (Goal.REMOVED, Step.LAUNCH, lease)


def test_what_is_removed_is_not_started(bench: Bench) -> None:
    bench.service.create(upload())
    bench.service.remove("web")
    for ask in (bench.service.start, bench.service.stop):
        with refuses("deploy.removed", ConflictError):
            ask("web")
    bench.change("web", step=Step.REMOVED)
    assert bench.service.remove("web").step is Step.REMOVED


@pytest.mark.parametrize(("ask", "goal"), [("start", Goal.RUNNING), ("stop", Goal.STOPPED)])
def test_what_failed_is_brought_to_another_goal(bench: Bench, ask: str, goal: Goal) -> None:
    bench.service.create(upload())
    bench.settle("web", Step.FAILED, failure=FAILURE)
    after = getattr(bench.service, ask)("web")
    assert (after.step, after.goal, after.failure) == (Step.PREPARE, goal, None)
    assert bench.calls[-1] == ("web", 0)


def test_retry_begins_again_with_the_same_files(bench: Bench) -> None:
    made = bench.service.create(upload())
    bench.settle("web", Step.FAILED, failure=FAILURE, attempt=8)
    after = bench.service.retry("web")
    assert (after.step, after.failure, after.attempt, after.files) == (Step.PREPARE, None, 0, made.files)


@pytest.mark.parametrize("step", [Step.RUNNING, Step.LAUNCH, Step.ROLLBACK])
def test_retry_is_for_what_failed(bench: Bench, step: Step) -> None:
    bench.service.create(upload())
    bench.settle("web", step)
    with refuses("deploy.not_failed", ConflictError):
        bench.service.retry("web")


@pytest.mark.parametrize("ask", ["get", "events", "logs", "stop", "start", "remove", "retry", "firewall"])
def test_an_unknown_name_is_said_to_be(bench: Bench, ask: str) -> None:
    with refuses("deploy.unknown", NotFoundError):
        getattr(bench.service, ask)("web")
    with refuses("deploy.request.name", ProtocolError):
        getattr(bench.service, ask)("../web")


# ---- idempotency ----


def test_the_same_request_with_the_same_key_is_done_once(bench: Bench) -> None:
    first = bench.service.create(upload(), key="k1")
    bench.calls.clear()
    assert bench.service.create(upload(), key="k1") == first
    # the first call of a runner may be what was lost
    assert bench.calls == [("web", 0)]


def test_a_queue_that_fails_loses_no_request(bench: Bench) -> None:
    def fails(*_: object) -> None:
        raise TransientCloudError("aws.throttled", "aws asks for fewer calls")

    clouds: Any = {"gcp-tdx": bench.cloud}
    service = DeploymentService(bench.store, bench.blobs, clouds, fails, lambda: NOW)
    with refuses("aws.throttled", TransientCloudError):
        service.create(upload(), key="k1")
    assert bench.service.create(upload(), key="k1").version == 1
    assert bench.calls == [("web", 0)]


def test_another_request_with_the_key_is_refused(bench: Bench) -> None:
    bench.service.create(upload(), key="k1")
    with refuses("deploy.idempotency", ConflictError):
        bench.service.create(upload(files=project(name="other")), key="k1")
    with refuses("deploy.idempotency", ConflictError):
        bench.service.create(upload(encrypted_env=CIPHERTEXT), key="k1")
    with refuses("deploy.idempotency", ConflictError):
        bench.service.create(upload(wait_for_approval=False), key="k1")
    with refuses("deploy.idempotency", ConflictError):
        bench.service.stop("web", key="k1")


def test_a_late_repetition_does_not_undo_what_came_after(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.service.stop("web", key="k1")
    bench.service.start("web", key="k2")
    assert bench.service.stop("web", key="k1").goal is Goal.RUNNING


def test_a_late_repetition_does_not_touch_the_next_use_of_a_name(bench: Bench) -> None:
    bench.service.create(upload(), key="create")
    bench.service.remove("web", key="remove")
    bench.change("web", step=Step.REMOVED)
    assert bench.service.create(upload(), key="create").step is Step.REMOVED
    bench.service.create(upload(), key="again")
    assert bench.service.remove("web", key="remove").goal is Goal.RUNNING


def test_remembers_the_newest_keys_alone(bench: Bench) -> None:
    bench.service.create(upload(), key="first")
    for number in range(MAX_REQUESTS):
        bench.service.start("web", key=f"k{number}")
    known = bench.store.get("web").requests
    assert list(known) == [f"k{number}" for number in range(MAX_REQUESTS)]


@pytest.mark.parametrize("key", ["k" * 129, "schlüssel", "a\nb"])
def test_refuses_what_is_no_key(bench: Bench, key: str) -> None:
    with refuses("deploy.request.key", ProtocolError):
        bench.service.create(upload(), key=key)
    bench.service.create(upload())
    with refuses("deploy.request.key", ProtocolError):
        bench.service.stop("web", key=key)


# ---- two at once ----


def at_once(*asks: Callable[[], Deployment]) -> list[Deployment | str]:
    """Start all together; return what each returned, or its code."""
    gate = threading.Barrier(len(asks))

    def run(ask: Callable[[], Deployment]) -> Deployment | str:
        gate.wait()
        try:
            return ask()
        except DstackError as error:
            return error.code

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(run, asks))


def test_of_two_that_create_at_once_one_does(bench: Bench) -> None:
    got = at_once(
        lambda: bench.service.create(upload()), lambda: bench.service.create(upload(files=project(name="b")))
    )
    assert sorted(one if isinstance(one, str) else "made" for one in got) == ["deploy.exists", "made"]


def test_of_two_that_redeploy_at_once_one_does(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    files = [project(name="a"), project(name="b")]
    got = at_once(*(lambda one=one: bench.service.redeploy(upload(files=one)) for one in files))  # type: ignore[misc]
    assert sorted(one if isinstance(one, str) else "made" for one in got) == ["deploy.busy", "made"]
    (winner,) = (one for one in got if isinstance(one, Deployment))
    assert bench.store.get("web").files == winner.files


def test_one_request_sent_twice_at_once_is_done_once(bench: Bench) -> None:
    got = at_once(*[lambda: bench.service.create(upload(), key="k1")] * 4)
    assert len({one.uid for one in got if isinstance(one, Deployment)}) == 1
    assert len(bench.service.events("web").events) == 1


def test_no_request_is_lost_among_others(bench: Bench) -> None:
    bench.service.create(upload())
    asks = [lambda key=f"k{number}": bench.service.start("web", key=key) for number in range(8)]  # type: ignore[misc]
    assert all(isinstance(one, Deployment) for one in at_once(*asks))
    assert set(bench.store.get("web").requests) == {f"k{number}" for number in range(8)}


class Overtaken(SqliteStore):
    """Somebody else writes between each read and the write that follows it, so many times."""

    times = 0

    def get(self, name: str) -> Deployment:
        found = super().get(name)
        if self.times:
            self.times -= 1
            changed = msgspec.structs.replace(found, version=found.version + 1, attempt=found.attempt + 1)
            self.replace(changed, found.version)
        return found


def test_reads_again_what_a_runner_wrote_meanwhile(bench: Bench, tmp_path: Path) -> None:
    store = Overtaken(tmp_path / "deployments.sqlite")
    clouds: Any = {"gcp-tdx": bench.cloud}
    service = DeploymentService(store, bench.blobs, clouds, lambda *_: None, lambda: NOW)
    service.create(upload())
    store.times = 3
    after = service.stop("web")
    assert (after.goal, after.attempt) == (Goal.STOPPED, 3)
    store.times = 100
    with refuses("deploy.busy", ConflictError):
        service.start("web")
    store.close()


# ---- looking ----


def test_lists_page_by_page(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.service.create(upload(name))
    first = bench.service.list(limit=2)
    assert [one.name for one in first.deployments] == ["a", "b"]
    second = bench.service.list(first.after, 2)
    assert ([one.name for one in second.deployments], second.after) == (["c"], "")


def test_events_are_read_on_from_where_they_ended(bench: Bench) -> None:
    bench.service.create(upload())
    first = bench.service.events("web")
    assert bench.service.events("web", first.after).events == ()
    assert bench.service.events("web", first.after).after == first.after
    bench.service.stop("web")
    assert [one.message for one in bench.service.events("web", first.after).events] == ["stop was asked for"]


def test_logs_of_100_mb_are_read_in_pages(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.cloud.console = b"x" * 100_000_000
    cursor, read = "", 0
    while page := bench.service.logs("web", cursor, 1 << 30):
        assert len(page.text) <= 1 << 20
        if not page.text:
            break
        read, cursor = read + len(page.text), page.cursor
    assert read == 100_000_000


def test_there_are_no_logs_without_a_machine(bench: Bench) -> None:
    bench.service.create(upload())
    with refuses("deploy.nothing_there", ConflictError):
        bench.service.logs("web")
    bench.settle("web", Step.REMOVED, goal=Goal.REMOVED)
    with refuses("deploy.nothing_there", ConflictError):
        bench.service.logs("web")


@pytest.mark.parametrize("cursor", ["x" * 1025, "ü"])
def test_refuses_cursors_that_nobody_handed_out(bench: Bench, cursor: str) -> None:
    with refuses("deploy.request.cursor", ProtocolError):
        bench.service.logs("web", cursor)


def test_looking_writes_nothing(bench: Bench) -> None:
    bench.service.create(upload())
    settled = bench.settle("web", lease=Lease("runner", "1", NOW + 60))
    bench.service.logs("web")
    bench.service.firewall("web")
    assert bench.store.get("web") == settled


# ---- firewall ----


def test_rules_are_made_listed_and_cleared(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    made = bench.service.set_firewall("web", RULE, caller="me")
    assert made == FirewallRule(action="allow", protocol="tcp", port=443, sources=("192.0.2.0/24",))
    assert list(bench.service.firewall("web")) == [made]
    assert [one.name for one in bench.store.get("web").resources] == ["allow-443"]
    assert bench.service.clear_firewall("web", "tcp", 443)
    assert not bench.service.clear_firewall("web", "tcp", 443)
    messages = [event.message for event in bench.service.events("web").events]
    assert messages[1:] == ["firewall: allow tcp 443", "firewall: no rule for tcp 443 any more"]


def test_rules_are_made_under_a_lease_that_is_given_back(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    bench.service.set_firewall("web", RULE)
    assert bench.cloud.seen[0].lease is not None
    assert bench.store.get("web").lease is None
    bench.cloud.failure = TransientCloudError("gcp.unavailable", "the cloud is down")
    with refuses("gcp.unavailable", TransientCloudError):
        bench.service.set_firewall("web", RULE)
    assert bench.store.get("web").lease is None


def test_a_port_can_be_opened_while_the_app_is_waited_for(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web", Step.AWAIT_ATTESTATION)
    bench.service.set_firewall("web", RULE)
    found = bench.store.get("web")
    assert (found.step, found.lease) == (Step.AWAIT_ATTESTATION, None)


def test_rules_wait_for_a_runner_at_work(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web", lease=Lease("runner", "1", NOW + 60))
    with refuses("deploy.busy", ConflictError):
        bench.service.set_firewall("web", RULE)
    bench.settle("web", Step.LAUNCH, lease=None)
    with refuses("deploy.busy", ConflictError):
        bench.service.clear_firewall("web", "tcp", 443)
    assert bench.cloud.seen == []


def test_a_goal_that_changed_meanwhile_is_followed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.service.create(upload())
    bench.settle("web")
    monkeypatch.setattr(bench.cloud, "_look", lambda _: bench.service.stop("web"))
    bench.calls.clear()
    bench.service.set_firewall("web", RULE)
    after = bench.store.get("web")
    assert (after.goal, after.lease) == (Goal.STOPPED, None)
    assert bench.calls == [("web", 0), ("web", 0)]


def test_a_port_is_not_opened_to_everybody_unasked(bench: Bench) -> None:
    bench.service.create(upload())
    bench.settle("web")
    with refuses("deploy.request.anywhere", ProtocolError):
        bench.service.set_firewall("web", msgspec.structs.replace(RULE, sources=("0.0.0.0/0",)))
    assert bench.cloud.rules == []
