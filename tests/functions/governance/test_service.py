"""From a delivery to a stopped deployment and back, on a chain in memory."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from functions.deploy.record import Goal, Step
from functions.deploy.service import DeploymentService
from functions.deploy.store import ConflictError
from functions.governance.chain import TooManyLogsError, View
from functions.governance.delivery import LogHint
from functions.governance.look import Look, read_look
from functions.governance.missed import MAX_LOOKED_UP
from functions.governance.providers import MAX_BODY
from functions.governance.receiver import MAX_DEPTH
from functions.governance.reconciler import RANGE, READ_SECONDS, Report
from functions.governance.service import AHEAD_SECONDS, AHEAD_WAITS, LAST_TRY
from shared.chain.rules import COMPOSE_HASH_NOT_ALLOWED
from shared.errors import ProtocolError, UnavailableError
from shared.keccak import keccak256
from tests.functions.governance.world import (
    APP,
    CHAIN_ID,
    COMPOSE_HASH_ADDED,
    COMPOSE_HASH_REMOVED,
    KMS,
    OLD_SECRET,
    SECRET,
    World,
    block_hash,
    plain,
    settle,
    wire,
)
from tests.shared.refusal import refuses

A, B = "aa" * 32, "bb" * 32


@pytest.fixture
def running(world: World) -> World:
    """One deployment that runs a hash which is allowed and final."""
    world.chain.mine(add=A)
    world.chain.final = world.chain.head
    world.deploy(A)
    return world


# ---- a revocation ----


def test_a_revocation_stops_the_deployment_at_once(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    answer = running.post(plain(hint))
    assert (answer.status, answer.body["accepted"]) == (200, 1)
    running.drain()
    found = running.get()
    assert found.quarantine is not None
    assert (found.quarantine.reason, found.quarantine.block_number) == (COMPOSE_HASH_NOT_ALLOWED, 2)
    assert (found.goal, found.effective_goal) == (Goal.RUNNING, Goal.STOPPED)
    assert running.advanced == ["web"]
    assert "governance.stopped" in running.codes()
    assert [event.code for event in running.store.events("web")] == ["governance.stopped"]


def test_a_deployment_of_another_hash_runs_on(running: World) -> None:
    running.chain.mine(add=B)
    running.deploy(B, "other")
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint))
    running.drain()
    assert running.get("other").quarantine is None
    assert running.get("web").quarantine is not None


def test_an_event_that_is_not_so_on_chain_changes_nothing(running: World) -> None:
    """A forged one with a stolen secret: the contract still allows the hash."""
    hint = running.chain.mine(remove=B)
    assert hint is not None
    running.post(plain(hint))
    running.drain()
    assert running.get().quarantine is None


def test_a_user_cannot_start_what_is_quarantined(running: World) -> None:
    running.chain.mine(remove=A)
    running.governor.look()
    service = DeploymentService(running.store, None, {}, lambda *_: None, running.clock)  # type: ignore[arg-type]
    with refuses("deploy.quarantined", ConflictError):
        service.start("web")


def test_a_removal_by_the_user_is_not_held_up(running: World) -> None:
    running.chain.mine(remove=A)
    running.governor.look()
    service = DeploymentService(running.store, None, {}, lambda *_: None, running.clock)  # type: ignore[arg-type]
    service.remove("web")
    assert running.get().effective_goal is Goal.REMOVED


def test_an_orphaned_stop_is_undone_by_the_sweep(running: World) -> None:
    running.chain.mine(remove=A)
    running.governor.look()
    settle(running.store)
    assert running.get().step is Step.STOPPED
    running.chain.reorganise(1)
    running.chain.mine(fork="other")
    report = running.service.reconcile()
    assert [(one.name, one.kind, one.acted) for one in report.drifts] == [
        ("web", "stopped_what_is_allowed", True)
    ]
    settle(running.store)
    found = running.get()
    assert (found.quarantine, found.step) == (None, Step.RUNNING)


def test_a_dropped_log_has_the_chain_looked_at_again(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint))
    running.drain()
    running.chain.reorganise(1)
    running.chain.mine(fork="other")
    answer = running.post(plain(msgspec.structs.replace(hint, removed=True), id="2"))
    assert answer.body["accepted"] == 1
    running.drain()
    assert running.get().quarantine is None


# ---- a grant ----


def test_a_grant_acts_when_it_is_final(world: World) -> None:
    world.deploy(A, step=Step.AWAIT_APPROVAL, due=world.now + 50)
    hint = world.chain.mine(add=A)
    assert hint is not None
    world.post(plain(hint))
    world.drain()
    assert world.get().due == world.now + 50
    world.chain.final = world.chain.head
    world.service.reconcile()
    assert world.get().due == 0
    assert world.advanced == ["web"]
    assert "governance.resumed" in world.codes()


def test_a_reorganised_grant_resumes_nothing(world: World) -> None:
    world.deploy(A, step=Step.AWAIT_APPROVAL, due=world.now + 50)
    hint = world.chain.mine(add=A)
    assert hint is not None
    world.post(plain(hint))
    world.chain.reorganise(1)
    world.chain.mine(fork="other")
    world.chain.final = world.chain.head
    world.drain()
    world.service.reconcile()
    assert world.get().due == world.now + 50
    assert world.advanced == []


def test_what_was_revoked_and_granted_again_waits_for_finality(running: World) -> None:
    running.chain.mine(remove=A)
    running.governor.look()
    running.chain.mine(add=A)
    running.governor.look()
    assert running.get().quarantine is not None
    running.chain.final = running.chain.head
    running.governor.look()
    assert running.get().quarantine is None


# ---- endpoints that fail ----


def test_n57_without_agreement_it_only_alarms(running: World) -> None:
    running.chain.mine(remove=A)
    running.chain.doubt = True
    with refuses("governance.quorum.disagreement", UnavailableError):
        running.governor.look()
    assert running.get().quarantine is None
    assert [one.severity for one in running.notices] == ["alarm"]


def test_n57_a_quorum_that_cannot_be_had_is_told_and_the_look_tried_again(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint))
    running.chain.failure = UnavailableError("quorum.too_few", "0 of 2 endpoints work")
    failed: list[str] = []
    running.drain(failing=lambda error: failed.append(error.code))
    assert failed == ["quorum.too_few"]
    assert [one.severity for one in running.notices if one.code == "quorum.too_few"] == ["alarm"]
    running.chain.failure = None
    running.drain()
    assert running.get().quarantine is not None


def test_n57_a_head_behind_the_event_is_no_answer(running: World) -> None:
    with refuses("governance.chain.behind", UnavailableError):
        running.governor.look(APP, at_least=running.chain.head + 1000)
    assert running.get().quarantine is None


def test_a_look_ahead_of_the_quorum_is_made_again_in_seconds_without_an_alarm(running: World) -> None:
    waits: list[tuple[str, int]] = []
    running.service._schedule = lambda name, seconds: waits.append((name, seconds))
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint))
    running.chain.lag = 1
    [name] = running.queue
    running.service.act(name)
    assert waits == [(f"{name}:1", AHEAD_SECONDS)]
    assert {one.severity for one in running.notices if one.code == "governance.chain.behind"} == {"info"}
    running.chain.lag = 0
    running.service.act(waits[0][0])
    assert running.get().quarantine is not None


def test_n57_a_look_that_stays_ahead_is_an_alarm_and_left_to_the_queue(running: World) -> None:
    name = Look(APP, running.chain.head + 1000).name
    for _ in range(AHEAD_WAITS):
        running.service.act(name)
        name = running.queue.pop()
    running.notices.clear()
    with refuses("governance.chain.behind", UnavailableError):
        running.service.act(name)
    assert [one.severity for one in running.notices] == ["alarm"]
    assert running.queue == []


def test_n57_a_head_that_is_old_is_an_alarm_at_once(running: World) -> None:
    running.chain.failure = UnavailableError(
        "governance.chain.behind", "the newest block is 9000 seconds old"
    )
    with refuses("governance.chain.behind", UnavailableError):
        running.service.act(Look(APP, 1).name)
    assert [one.severity for one in running.notices] == ["alarm"]


def test_n58_one_deployment_that_fails_does_not_save_the_next(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.deploy(A, "zweb")
    running.chain.mine(remove=A)
    impose = running.quarantines.impose

    def fail_first(name: str, *rest: object) -> bool:
        if name == "web":
            raise ConflictError("deploy.busy", "deployment web was changed 20 times meanwhile")
        return impose(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running.quarantines, "impose", fail_first)
    with refuses("deploy.busy", ConflictError):
        running.governor.look()
    assert running.get("zweb").quarantine is not None


def test_a_stop_that_the_engine_gave_up_is_begun_again(running: World) -> None:
    running.chain.mine(remove=A)
    running.governor.look()
    found = running.get()
    running.store.replace(
        msgspec.structs.replace(found, step=Step.FAILED, version=found.version + 1), found.version
    )
    running.governor.look()
    assert running.get().step is Step.STOP


def test_a_message_that_fails_for_ever_is_buried_and_told(running: World) -> None:
    running.chain.failure = UnavailableError("quorum.too_few", "0 of 2 endpoints work")
    name = Look(APP, 0).name
    with refuses("quorum.too_few", UnavailableError):
        running.service.act_or_bury(name, LAST_TRY - 1)
    running.service.act_or_bury(name, LAST_TRY)
    assert running.memory.buried() == [name]
    assert running.codes()[-1] == "governance.dead_letter"


def test_a_message_that_is_none_is_dropped_and_told(running: World) -> None:
    running.service.act("look:nowhere")
    assert running.codes() == ["governance.message"]
    with refuses("governance.message", ProtocolError):
        read_look("look:0x00:1")


@pytest.mark.parametrize("look", [Look(APP, 7), Look(None, 0), Look(APP, 7, 3)])
def test_a_look_travels_as_its_name(look: Look) -> None:
    assert read_look(look.name) == look


# ---- deliveries that are not taken ----


def test_a_wrong_signature_is_refused(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    answer = running.post(plain(hint), secret=b"another secret")
    assert (answer.status, answer.body) == (401, {"code": "governance.signature"})
    assert running.queue == []


def test_a_missing_signature_is_refused(running: World) -> None:
    answer = running.service.handle("POST", "/webhooks/plain", {}, b"{}")
    assert (answer.status, answer.body) == (401, {"code": "governance.signature.missing"})


def test_a_changed_body_is_refused(running: World) -> None:
    signed = running.post(b'{"id":"1","chainId":31337,"logs":[]}')
    assert signed.status == 200
    stamp = str(running.now)
    headers = {"X-Dstack-Timestamp": stamp, "X-Dstack-Signature": "sha256=" + "00" * 32}
    answer = running.service.handle("POST", "/webhooks/plain", headers, b'{"id":"1","chainId":1,"logs":[]}')
    assert answer.body["code"] == "governance.signature"


@pytest.mark.parametrize("skew", [-301, 301])
def test_a_stale_timestamp_is_refused(running: World, skew: int) -> None:
    answer = running.post(plain(), stamp=str(running.now + skew))
    assert (answer.status, answer.body) == (401, {"code": "governance.timestamp"})


def test_a_timestamp_that_is_none_is_refused(running: World) -> None:
    assert running.post(plain(), stamp="soon").body == {"code": "governance.timestamp"}


def test_a_replay_changes_nothing(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    assert running.post(plain(hint)).body["accepted"] == 1
    answer = running.post(plain(hint))
    assert (answer.status, answer.body["code"], answer.body["accepted"]) == (200, "governance.replay", 0)
    assert len(running.queue) == 1


def test_a_log_that_two_deliveries_bring_is_looked_at_once(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint))
    assert running.post(plain(hint, id="2")).body["ignored"] == {"governance.event.seen": 1}
    assert len(running.queue) == 1


OTHER_APP = bytes.fromhex("55" * 20)


def test_logs_of_two_transactions_that_both_count_from_zero_are_both_looked_at(running: World) -> None:
    """A provider whose logs have no index has each transaction's first log at 0."""
    running.chain.mine(add=B)
    running.deploy(B, "other", app_id=OTHER_APP.hex())
    second = running.chain.mine(remove=B, app=OTHER_APP)
    assert second is not None
    first = msgspec.structs.replace(second, address=APP)
    running.post(plain(first, id="1"))
    assert running.post(plain(second, id="2")).body["accepted"] == 1
    running.drain()
    assert running.get("other").quarantine is not None


@pytest.mark.parametrize("lie", [{"address": KMS}, {"block_number": 2**62}, {"topic": COMPOSE_HASH_ADDED}])
def test_a_lie_about_a_log_hides_no_true_one(running: World, lie: dict[str, Any]) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(msgspec.structs.replace(hint, **lie), id="a lie"))
    running.queue.clear()
    assert running.post(plain(hint, id="the truth")).body["accepted"] == 1
    running.drain()
    assert running.get().quarantine is not None


def test_a_log_that_was_dropped_and_is_back_is_looked_at_again(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint, id="1"))
    running.drain()
    running.chain.reorganise(1)
    running.chain.mine(fork="other")
    running.post(plain(msgspec.structs.replace(hint, removed=True), id="2"))
    running.drain()
    assert running.get().quarantine is None
    running.chain.reorganise(1)
    assert running.chain.mine(remove=A) == hint
    assert running.post(plain(hint, id="3")).body["accepted"] == 1
    running.drain()
    assert running.get().quarantine is not None


def test_a_log_that_is_dropped_twice_is_looked_at_twice(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    dropped = msgspec.structs.replace(hint, removed=True)
    took = [running.post(plain(one, id=str(at))) for at, one in enumerate((hint, dropped, hint, dropped))]
    assert [one.body["accepted"] for one in took] == [1, 1, 1, 1]


def test_an_anonymous_log_beside_a_revocation_is_ignored_with_a_code(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    document = plain(hint)
    document["logs"].insert(0, document["logs"][0] | {"topics": []})
    answer = running.post(document)
    assert (answer.status, answer.body["accepted"]) == (200, 1)
    assert answer.body["ignored"] == {"governance.event.unknown": 1}
    running.drain()
    assert running.get().quarantine is not None


def test_half_a_character_is_refused(running: World) -> None:
    body = b'{"id":"\\ud800","chainId":31337,"logs":[]}'
    assert running.post(body).body == {"code": "governance.body.shape"}


def test_half_a_character_is_refused_of_a_provider_that_gives_no_id(running: World) -> None:
    body, stamp = b'{"title":"\\ud800","body":""}', str(running.now * 1000)
    signature = hmac.new(SECRET, body + stamp.encode(), hashlib.sha256).hexdigest()
    headers = {"X-Timestamp": stamp, "X-Signature": signature}
    answer = running.service.handle("POST", "/webhooks/openzeppelin", headers, body)
    assert (answer.status, answer.body) == (400, {"code": "governance.body.shape"})


def test_a_body_that_nests_deeply_is_refused(running: World) -> None:
    filling: object = 1
    for _ in range(MAX_DEPTH):
        filling = [filling]
    document = plain() | {"filling": filling}
    assert running.post(document).body == {"code": "governance.body.json.depth"}
    assert running.post(plain() | {"filling": filling[0]}).status == 200  # type: ignore[index]


def test_a_body_of_10_mb_is_refused_before_anything_else(running: World) -> None:
    answer = running.service.handle("POST", "/webhooks/plain", {}, bytes(10 << 20))
    assert (answer.status, answer.body) == (413, {"code": "governance.body.size"})
    assert MAX_BODY < 10 << 20


def test_a_body_that_is_no_json_is_refused(running: World) -> None:
    assert running.post(b"not json").body == {"code": "governance.body.json.syntax"}


def test_a_body_of_another_shape_is_refused(running: World) -> None:
    assert running.post(b"[]").body == {"code": "governance.body.shape"}
    assert running.post({"id": "1", "logs": []}).body == {"code": "governance.body.shape"}


def test_more_logs_than_a_block_has_are_refused(running: World) -> None:
    document = {"id": "1", "chainId": CHAIN_ID, "logs": [{}] * 2001}
    assert running.post(document).body == {"code": "governance.body.logs"}


def test_an_unknown_event_is_ignored_with_a_code(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    answer = running.post(plain(msgspec.structs.replace(hint, topic=bytes(32))))
    assert (answer.status, answer.body["ignored"]) == (200, {"governance.event.unknown": 1})
    assert running.queue == []


def test_an_event_of_another_contract_is_ignored_with_a_code(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    answer = running.post(plain(msgspec.structs.replace(hint, address=bytes(20))))
    assert (answer.status, answer.body["ignored"]) == (200, {"governance.event.contract": 1})


def test_an_event_of_another_chain_is_ignored_with_a_code(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    answer = running.post(plain(hint, chain_id=1))
    assert (answer.status, answer.body["ignored"]) == (200, {"governance.event.chain": 1})


@pytest.mark.parametrize("network", ["BASE_MAINNET", "ZKSYNC_MAINNET"])
def test_a_network_of_alchemys_that_is_not_ours_is_ignored_with_a_code(running: World, network: str) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    event = {"network": network, "data": {"block": {"logs": [wire(hint)]}}}
    body = msgspec.json.encode({"id": "1", "event": event})
    headers = {"X-Alchemy-Signature": hmac.new(SECRET, body, hashlib.sha256).hexdigest()}
    answer = running.service.handle("POST", "/webhooks/alchemy", headers, body)
    assert (answer.status, answer.body["ignored"]) == (200, {"governance.event.chain": 1})
    assert running.queue == []


def test_what_anybody_can_send_calls_nobody(running: World) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.post(plain(hint), secret=b"another secret")
    running.post(plain(hint), stamp="soon")
    running.post(plain(hint), provider="nobody")
    running.service.handle("POST", "/webhooks/plain", {}, b"{}")
    running.service.handle("POST", "/webhooks/plain", {}, bytes(MAX_BODY + 1))
    running.service.handle("POST", "/webhooks/quicknode", {"Content-Encoding": "gzip"}, b"none")
    assert [(one.code, one.severity) for one in running.notices] == [
        ("governance.signature", "info"),
        ("governance.timestamp", "info"),
        ("governance.provider", "info"),
        ("governance.signature.missing", "info"),
        ("governance.body.size", "info"),
        ("governance.body.gzip", "info"),
    ]


def test_what_a_provider_sends_and_is_refused_is_a_warning(running: World) -> None:
    running.post(b"not json")
    assert [one.severity for one in running.notices] == ["warning"]


def test_an_unknown_provider_and_another_path_are_not_found(running: World) -> None:
    assert running.post(plain(), provider="nobody").body == {"code": "governance.provider"}
    assert running.service.handle("POST", "/", {}, b"").body["code"] == "governance.route"
    assert running.service.handle("GET", "/webhooks/tenderly", {}, b"").status == 200


def test_two_secrets_are_valid_while_one_follows_the_other(running: World) -> None:
    running.secrets = (SECRET, OLD_SECRET)
    assert running.post(plain(id="1"), secret=OLD_SECRET).status == 200
    assert running.post(plain(id="2"), secret=SECRET).status == 200
    running.secrets = (SECRET,)
    assert running.post(plain(id="3"), secret=OLD_SECRET).status == 401


def test_what_could_not_be_queued_is_not_remembered(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hint = running.chain.mine(remove=A)
    assert hint is not None

    def fail(name: str, seconds: int) -> None:
        raise UnavailableError("aws.unavailable", f"{name} {seconds}")

    schedule = running.receiver._schedule
    monkeypatch.setattr(running.receiver, "_schedule", fail)
    assert running.post(plain(hint)).status == 503
    monkeypatch.setattr(running.receiver, "_schedule", schedule)
    assert running.post(plain(hint)).body["accepted"] == 1


# ---- the sweep ----


def test_the_sweep_replays_what_no_webhook_brought_once(running: World) -> None:
    running.service.reconcile()
    running.notices.clear()
    running.chain.mine(remove=A)
    report = running.service.reconcile()
    assert report.replayed == 1
    assert {"governance.event.missed", "governance.stopped", "governance.drift"} <= set(running.codes())
    assert running.get().quarantine is not None
    assert running.queue == [Look(APP, running.chain.head).name]
    assert running.service.reconcile().replayed == 0


def test_the_cursor_stays_below_what_may_be_replaced(running: World) -> None:
    running.service.reconcile()
    for _ in range(5):
        running.chain.mine()
    running.chain.final = 4
    assert running.service.reconcile().cursor == 4
    cursor = running.memory.cursor()
    assert cursor is not None
    assert cursor.number == 4


def test_a_long_outage_is_swept_in_bounded_ranges(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running.service.reconcile()
    asked: list[tuple[int, int]] = []
    logs = running.chain.logs

    def counted(addresses: list[bytes], first: int, last: int) -> object:
        asked.append((first, last))
        return logs(addresses, first, last)

    monkeypatch.setattr(running.chain, "logs", counted)
    for _ in range(1200):
        running.chain.mine()
    running.chain.final = running.chain.head
    running.service.reconcile()
    assert asked == [(2, 501), (502, 1001), (1002, 1201)]


def test_a_final_block_that_is_gone_is_told(running: World) -> None:
    running.service.reconcile()
    running.chain.forks[running.chain.final] = "other"
    running.service.reconcile()
    assert "governance.cursor.orphaned" in running.codes()


def test_a_final_block_that_is_gone_has_the_blocks_before_it_read_again(running: World) -> None:
    for _ in range(3):
        running.chain.mine()
    running.chain.final = running.chain.head
    assert running.service.reconcile().cursor == 4
    running.chain.reorganise(3)
    running.chain.mine(remove=A, fork="other")
    for _ in range(3):
        running.chain.mine(fork="other")
    running.chain.final = running.chain.head
    report = running.service.reconcile()
    assert (report.replayed, report.cursor) == (2, 5)  # the new chain's, and the one below it


def too_many(most: int, *, is_oversize: bool) -> Callable[[World], list[tuple[int, int]]]:
    """Have a world's chain refuse ranges of more logs; returns which were asked for."""

    def install(world: World) -> list[tuple[int, int]]:
        asked: list[tuple[int, int]] = []
        logs = world.chain.logs

        def bounded(addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
            asked.append((first, last))
            found = logs(addresses, first, last)
            if len(found) > most:
                raise TooManyLogsError("0 of 2 endpoints answer", is_oversize=is_oversize)
            return found

        world.chain.logs = bounded  # type: ignore[method-assign]
        return asked

    return install


def test_a_range_with_too_many_logs_is_read_in_parts(running: World) -> None:
    running.service.reconcile()
    for number in range(20):
        running.chain.mine(add=f"{number:02x}" * 32)
    running.chain.final = running.chain.head
    asked = too_many(6, is_oversize=False)(running)
    report = running.service.reconcile()
    assert (report.replayed, report.cursor) == (20, 21)
    assert asked == [(2, 21), (2, 11), (2, 6), (7, 11), (12, 16), (17, 21)]


def test_the_replay_keeps_up_with_a_fast_chain_and_endpoints_that_search_ten_blocks_at_once(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.service.reconcile()
    logs = running.chain.logs

    def searching_ten(addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
        if last - first >= 10:
            raise TooManyLogsError("10 blocks at most", is_oversize=False)
        return logs(addresses, first, last)

    monkeypatch.setattr(running.chain, "logs", searching_ten)
    for _ in range(3):
        for _ in range(240):
            running.chain.mine()
        running.chain.final = running.chain.head
        assert running.service.reconcile().cursor == running.chain.head
    assert "governance.logs.behind" not in running.codes()
    for _ in range(1000):
        running.chain.mine()
    running.chain.final = running.chain.head
    assert running.service.reconcile().cursor < running.chain.head
    assert running.codes().count("governance.logs.behind") == 1


def test_a_sweep_stops_reading_logs_in_time(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    running.service.reconcile()
    for _ in range(2000):
        running.chain.mine()
    running.chain.final = running.chain.head
    logs = running.chain.logs

    def slow(addresses: Sequence[bytes], first: int, last: int) -> Sequence[LogHint]:
        running.now += READ_SECONDS
        return logs(addresses, first, last)

    monkeypatch.setattr(running.chain, "logs", slow)
    assert running.service.reconcile().cursor == 1 + 2 * RANGE


def test_a_block_with_too_many_logs_does_not_have_the_replay_stand_still(running: World) -> None:
    running.service.reconcile()
    for _ in range(9):
        running.chain.mine()
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.chain.events += [msgspec.structs.replace(hint, log_index=at) for at in range(1, 9)]
    for _ in range(5):
        running.chain.mine()
    running.chain.final = running.chain.head
    too_many(6, is_oversize=True)(running)
    assert running.service.reconcile().cursor == running.chain.head
    [told] = [one for one in running.notices if one.code == "governance.logs.oversize"]
    assert (told.severity, told.facts) == ("warning", {"block": hint.block_number})
    assert running.get().quarantine is not None


def test_endpoints_that_refuse_a_single_block_are_an_alarm(running: World) -> None:
    running.service.reconcile()
    running.chain.mine(add=B)
    too_many(0, is_oversize=False)(running)
    with refuses("governance.quorum.too_few", UnavailableError):
        running.service.reconcile()
    assert "alarm" in [one.severity for one in running.notices]


def test_n57_invented_logs_cost_one_look_and_one_notice(running: World) -> None:
    running.service.reconcile()
    hint = running.chain.mine(add=B)
    assert hint is not None
    for address in (KMS, APP):
        running.chain.events += [
            msgspec.structs.replace(
                hint, address=address, topic=COMPOSE_HASH_REMOVED, block_hash=block_hash(at, "invented")
            )
            for at in range(400)
        ]
    running.notices.clear()
    assert running.service.reconcile().replayed == 2 * MAX_LOOKED_UP + 1
    assert sorted(running.queue) == sorted(Look(one, running.chain.head).name for one in (KMS, APP))
    assert running.codes() == ["governance.event.missed"]


def test_many_registrations_hide_no_other_event(running: World) -> None:
    running.service.reconcile()
    hint = running.chain.mine(add=B, app=KMS)
    assert hint is not None
    running.chain.events += [msgspec.structs.replace(hint, log_index=at) for at in range(1, 500)]
    running.chain.events.append(
        msgspec.structs.replace(hint, log_index=500, topic=keccak256(b"Upgraded(address)"))
    )
    running.notices.clear()
    running.service.reconcile()
    [told] = [one for one in running.notices if one.code == "governance.event.missed"]
    assert (told.severity, told.facts["events"]) == ("warning", ["ComposeHashAdded", "Upgraded"])


def test_a_log_that_the_sweep_finds_back_counts_again_when_it_is_dropped_again(running: World) -> None:
    running.service.reconcile()
    hint = running.chain.mine(remove=A)
    assert hint is not None
    dropped = msgspec.structs.replace(hint, removed=True)
    running.post(plain(dropped, id="1"))
    running.service.reconcile()
    assert running.post(plain(dropped, id="2")).body["accepted"] == 1


def test_a_log_that_a_webhook_is_at_does_not_fail_the_sweep(running: World) -> None:
    running.service.reconcile()
    hint = running.chain.mine(remove=A)
    assert hint is not None
    running.notices.clear()
    reports: list[Report] = []
    running.memory.do(hint.key(CHAIN_ID), lambda: reports.append(running.service.reconcile()))
    assert [one.replayed for one in reports] == [0]
    assert "alarm" not in [one.severity for one in running.notices]


def test_a_memory_that_fails_is_an_alarm(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise UnavailableError("aws.unavailable", "dynamodb")

    running.service.reconcile()
    running.chain.mine(add=B)
    monkeypatch.setattr(running.memory, "do", fail)
    with refuses("aws.unavailable", UnavailableError):
        running.service.reconcile()
    assert "alarm" in [one.severity for one in running.notices]


def test_endpoints_that_show_no_logs_save_nothing(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnavailableError("governance.quorum.too_few", "0 of 2 endpoints answer")

    running.chain.mine(remove=A)
    monkeypatch.setattr(running.chain, "logs", refuse)
    with refuses("governance.quorum.too_few", UnavailableError):
        running.service.reconcile()
    assert running.get().quarantine is not None
    assert running.memory.cursor() is None


def test_a_sweep_of_nothing_is_quiet(running: World) -> None:
    assert running.service.reconcile().drifts == ()
    assert running.notices == []


def test_a_device_that_nobody_knows_stops_nothing(running: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        running.chain, "view", lambda block, workloads: View(block, ("Device not allowed",) * len(workloads))
    )
    assert running.governor.look(KMS) == []
    assert running.get().quarantine is None
