"""`gov watch`: events as they come, taken back where the chain was reorganised."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cli.devchain.launcher import Chain, find_anvil, start_chain
from cli.gov import logs as reading
from cli.gov.chain import Contracts
from cli.gov.logs import first_block, read_logs
from cli.gov.watch import Watcher, event_json, follow
from shared.chain.events import COMPOSE_HASH_ADDED, EVENTS, OS_IMAGE_ADDED, topic_of
from shared.errors import ConfigError, InvalidEvidence, ProtocolError, UnavailableError
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc
from tests.cli.gov.conftest import Site
from tests.cli.gov.relays import relays
from tests.docs.console_page import RawCall
from tests.shared.refusal import refuses

Fresh = Callable[[], str]
KMS = b"\xaa" * 20


def test_prints_what_happened_since_a_block(site: Site, fresh: Fresh) -> None:
    value = fresh()
    since = site.gov("image", "list", "--json").json["block"]["number"]
    site.send("image", "add", value)
    ran = site.gov("watch", "--from-block", str(since + 1), "--no-follow", "--json")
    told = [json.loads(line) for line in ran.output.splitlines()]
    assert [one["event"] for one in told] == ["OsImageHashAdded", "PolicyChanged"]
    assert told[0]["arguments"] == {"osImageHash": value}
    assert told[1]["arguments"]["policy"] == "os-image"
    assert (
        f"OsImageHashAdded(osImageHash={value})"
        in site.gov("watch", "--from-block", str(since + 1), "--no-follow").output
    )


def test_watches_apps_that_are_registered_and_those_that_come(site: Site, fresh: Fresh) -> None:
    before, value = site.app(), fresh()
    since = site.gov("image", "list", "--json").json["block"]["number"]
    site.send("app", "add-hash", before, value)
    new = site.app()
    ran = site.gov("watch", "--from-block", str(since + 1), "--no-follow", "--json")
    told = [json.loads(line) for line in ran.output.splitlines()]
    assert ("ComposeHashAdded", before) in [(one["event"], one["contract"]) for one in told]
    assert ("Initialized", new) in [(one["event"], one["contract"]) for one in told]


# logs ComposeHashAdded with its argument as a topic, on any call
INDEXED = f"7f{'11' * 32}7f{topic_of(COMPOSE_HASH_ADDED).hex()}5f5fa200"


def test_an_app_that_logs_what_ours_never_would_hides_nothing(site: Site, fresh: Fresh) -> None:
    value, app_id = fresh(), site.contract(INDEXED)
    since = site.gov("image", "list", "--json").json["block"]["number"]
    site.send("app", "register", app_id)
    site.owner.settle(site.owner.send(RawCall(app_id, "0x")))
    site.send("image", "add", value)
    ran = site.gov("watch", "--from-block", str(since + 1), "--no-follow", "--json")
    assert ran.code == 0, ran.output
    told = [json.loads(line) for line in ran.output.splitlines()]
    expected = ["AppRegistered", "PolicyChanged", "MalformedLog", "OsImageHashAdded", "PolicyChanged"]
    assert [one["event"] for one in told] == expected
    assert told[2]["contract"] == app_id
    assert told[2]["arguments"]["of"] == "'ComposeHashAdded'"


def test_an_app_whose_block_is_too_much_hides_its_own_logs_alone(site: Site, fresh: Fresh) -> None:
    value, flooding, other = fresh(), site.app(), site.app()
    since = site.gov("image", "list", "--json").json["block"]["number"]
    site.send("app", "add-hash", flooding, value)
    flooded = since + 1
    site.send("app", "add-hash", other, value)
    site.send("image", "add", value)

    def lie(asked: dict[str, Any]) -> dict[str, Any] | None:
        if asked["method"] != "eth_getLogs":
            return None
        (wanted,) = asked["params"]
        is_flooded = int(wanted["fromBlock"], 16) <= flooded <= int(wanted["toBlock"], 16)
        if is_flooded and flooding.lower() in wanted["address"]:
            return {"error": {"code": -32005, "message": "query returned more than 10000 results"}}
        return None

    with relays(site.chain.url, 1) as (relay,):
        relay.lie = lie
        ran = site.gov("watch", "--from-block", str(since + 1), "--no-follow", "--json", rpc=relay.url)
    told = [json.loads(line) for line in ran.output.splitlines()]
    assert [(one["event"], one["contract"]) for one in told if one["event"] != "PolicyChanged"] == [
        ("LogsNotRead", flooding),
        ("ComposeHashAdded", other),
        ("OsImageHashAdded", site.kms),
    ]
    assert "more than 10000 results [rpc.error]" in told[0]["arguments"]["why"]


def test_from_now_on_it_prints_nothing_that_was_before(site: Site) -> None:
    assert site.gov("watch", "--no-follow").output == ""


@pytest.mark.parametrize("where", ["x", "-1", "²"])
def test_begins_at_no_block_that_is_none(site: Site, where: str) -> None:
    assert site.gov("watch", "--from-block", where).code == 2


def test_a_real_reorganisation_takes_events_back(fresh: Fresh, tmp_path: Any) -> None:
    if find_anvil() is None:
        pytest.skip("anvil is absent: npm ci --ignore-scripts in contracts")
    with start_chain("anvil", block_time=0) as chain:
        site = Site(chain, tmp_path)
        contracts = Contracts(_rpc(chain), bytes.fromhex(site.kms[2:]))
        watcher = Watcher(contracts, set(), contracts.pin().number, all_apps=True)
        first, second = bytes.fromhex(fresh()[2:]), bytes.fromhex(fresh()[2:])
        assert watcher.look() == []
        site.owner.settle(site.owner.add_os_image(first))
        site.owner.settle(site.owner.add_os_image(second))
        came = watcher.look()
        assert [one.removed for one in came] == [False] * 4
        _rpc(chain).call("anvil_reorg", [1, []])
        gone = watcher.look()
        assert [one.log for one in gone] == [came[3].log, came[2].log]
        assert all(one.removed for one in gone)
        assert watcher.look() == []


def _rpc(chain: Chain) -> JsonRpc:
    return JsonRpc(chain.url, HttpClient(DirectDialer()))


class Fork:
    """A chain of blocks by number, with the logs of each, that can be cut and grow again."""

    host, secure = "node.example", True

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.logs: dict[bytes, list[dict[str, Any]]] = {}
        self.final = 0
        self.head: int | None = None
        self.after_logs: Callable[[], None] = lambda: None
        self.most = 10_000
        self.asked: list[tuple[int, int]] = []
        self._made = 0
        self.grow()

    def grow(self, *values: bytes) -> None:
        self._made += 1
        number, block_hash = len(self.blocks), self._made.to_bytes(32, "big")
        self.blocks.append(block_hash)
        self.logs[block_hash] = [
            {
                "address": f"0x{KMS.hex()}",
                "topics": [f"0x{topic_of(OS_IMAGE_ADDED).hex()}"],
                "data": f"0x{value.hex()}",
                "blockNumber": hex(number),
                "blockHash": f"0x{block_hash.hex()}",
                "transactionHash": "0x" + "cc" * 32,
                "logIndex": hex(index),
                "removed": False,
            }
            for index, value in enumerate(values)
        ]

    def cut(self, count: int) -> None:
        del self.blocks[-count:]

    def batch(self, calls: Sequence[Call]) -> list[object]:
        return [self._one(method, params) for method, params in calls]

    def _one(self, method: str, params: Sequence[Any]) -> object:
        if method == "eth_chainId":
            return "0x1"
        if method == "eth_getBlockByNumber":
            return self._block(params[0])
        assert method == "eth_getLogs"
        first, last = int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)
        self.asked.append((first, last))
        if last - first + 1 > self.most:
            raise UnavailableError("rpc.error", "query exceeds the range")
        found = [one for block in self.blocks[first : last + 1] for one in self.logs[block]]
        if params[0]["topics"][0] != [f"0x{topic_of(event).hex()}" for event in EVENTS]:
            return []
        self.after_logs()
        return found

    def _block(self, tag: str) -> object:
        head = len(self.blocks) - 1 if self.head is None else self.head
        number = {"latest": head, "finalized": self.final}.get(tag)
        number = int(tag, 16) if number is None else number
        if number > head:
            return None
        return {"number": hex(number), "hash": f"0x{self.blocks[number].hex()}", "timestamp": "0x1"}


@pytest.fixture
def fork() -> Fork:
    return Fork()


def watching(fork: Fork, after: int = 0) -> Watcher:
    return Watcher(Contracts(fork, KMS), set(), after, all_apps=True)


def told(watcher: Watcher) -> list[tuple[bytes, bool]]:
    return [(one.log.decoded.arguments[0], one.removed) for one in watcher.look()]  # type: ignore[misc]


A, B, C = (bytes([number]) * 32 for number in (1, 2, 3))


def test_tells_each_event_once(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A, B)
    assert told(watcher) == [(A, False), (B, False)]
    fork.grow()
    assert told(watcher) == []
    fork.grow(C)
    assert told(watcher) == [(C, False)]


def test_takes_back_what_another_chain_has_not(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A)
    fork.grow(B)
    told(watcher)
    fork.cut(1)
    fork.grow(C)
    assert told(watcher) == [(B, True), (C, False)]


def test_tells_an_event_again_that_is_in_another_block_now(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A)
    told(watcher)
    fork.cut(1)
    fork.grow()
    fork.grow(A)
    assert told(watcher) == [(A, True), (A, False)]


def test_takes_back_what_is_on_a_shorter_chain(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A)
    fork.grow(B)
    told(watcher)
    fork.cut(2)
    fork.grow(C)
    assert told(watcher) == [(B, True), (A, True), (C, False)]


def test_a_reorganisation_below_the_first_look_is_seen(fork: Fork) -> None:
    for _ in range(3):
        fork.grow()
    watcher = watching(fork, after=1)
    assert told(watcher) == []
    fork.cut(2)
    fork.grow(A)
    fork.grow()
    fork.grow()
    assert told(watcher) == [(A, False)]


def test_an_endpoint_that_lags_takes_nothing_back(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A)
    fork.grow(B)
    told(watcher)
    fork.head = 1
    assert told(watcher) == []
    fork.head = None
    fork.grow(C)
    assert told(watcher) == [(C, False)]


def test_what_is_final_is_not_asked_about_again(fork: Fork) -> None:
    watcher = watching(fork)
    for value in (A, B, C):
        fork.grow(value)
        fork.final = len(fork.blocks) - 1
        told(watcher)
    assert len(watcher._seen) == 1
    assert len(watcher._told) == 1


def test_a_chain_that_changes_while_it_is_read_is_read_again(fork: Fork) -> None:
    watcher = watching(fork)
    fork.grow(A)

    def change() -> None:
        fork.after_logs = lambda: None
        fork.cut(1)
        fork.grow(B)

    fork.after_logs = change
    with refuses("gov.reorg", ProtocolError):
        watcher.look()
    assert told(watcher) == [(B, False)]


def test_follows_through_an_endpoint_that_fails_for_a_while(
    fork: Fork, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = watching(fork)
    fork.grow(A)
    works = fork.batch
    failures = iter(
        [UnavailableError("net.unreachable", "no"), InvalidEvidence("quorum.finalized.regressed", "no")]
    )

    def failing(calls: Sequence[Call]) -> list[object]:
        if (failure := next(failures, None)) is not None:
            raise failure
        return works(calls)

    monkeypatch.setattr(fork, "batch", failing)
    following = follow(watcher, poll=1, stop=False, sleep=lambda _: None)
    assert event_json(next(following))["arguments"] == {"osImageHash": f"0x{A.hex()}"}
    told_of = capsys.readouterr().err
    assert ("net.unreachable" in told_of, "quorum.finalized.regressed" in told_of) == (True, True)


# ---- reading logs ----


@pytest.mark.parametrize("tolerant", ["tolerant", ""])
def test_the_kms_contracts_own_logs_are_held_to_the_form(fork: Fork, tolerant: str) -> None:
    fork.grow(A)
    (one,) = fork.logs[fork.blocks[1]]
    one["topics"] = [*one["topics"], f"0x{A.hex()}"]
    with refuses("event.malformed", ProtocolError):
        read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 0, 1, tolerant=bool(tolerant))


def test_a_log_of_an_app_that_is_longer_than_any_of_ours_is_told(fork: Fork) -> None:
    app = b"\xbb" * 20
    fork.grow(A, B)
    fork.logs[fork.blocks[1]][0] |= {"address": f"0x{app.hex()}", "data": "0x" + "00" * 65_568}
    malformed, after = read_logs(Contracts(fork, KMS), {KMS, app}, EVENTS, 0, 1, tolerant=True)
    assert (malformed.contract, malformed.decoded.event.name) == (app, "MalformedLog")
    assert after.decoded.arguments == (B,)
    with refuses("rpc.malformed", ProtocolError):
        read_logs(Contracts(fork, KMS), {KMS, app}, EVENTS, 0, 1)


def test_asks_for_the_logs_of_many_apps_in_parts(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_CONTRACTS", 2)
    read_logs(Contracts(fork, KMS), {KMS, b"\1" * 20, b"\2" * 20}, EVENTS, 0, 0)
    assert fork.asked == [(0, 0), (0, 0)]


def test_asks_for_less_where_an_endpoint_refuses_a_range(fork: Fork) -> None:
    for value in (A, B, C):
        fork.grow(value)
    fork.most = 1
    found = read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 0, 3)
    assert [log.decoded.arguments[0] for log in found] == [A, B, C]


def test_gives_up_where_an_endpoint_refuses_a_single_block(fork: Fork) -> None:
    fork.most = 0
    with refuses("rpc.error", UnavailableError):
        read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 0, 0)


def test_long_ranges_are_asked_for_in_parts(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_RANGE", 2)
    for value in (A, B, C):
        fork.grow(value)
    read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 0, 3)
    assert fork.asked == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    "change",
    [
        {"address": "0x" + "bb" * 20},
        {"topics": []},
        {"topics": ["0x" + "00" * 32]},
        {"topics": 5},
        {"blockNumber": "0x9"},
        {"blockHash": "0x00"},
        {"removed": True},
        {"logIndex": None},
        {"data": None},
    ],
)
def test_logs_that_were_not_asked_for_are_refused(fork: Fork, change: dict[str, object]) -> None:
    fork.grow(A)
    fork.logs[fork.blocks[1]][0] |= change
    fork.most = 1
    with refuses("rpc.malformed", ProtocolError):
        read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 0, 1)


def test_a_log_twice_is_refused(fork: Fork) -> None:
    fork.grow(A, B)
    fork.logs[fork.blocks[1]][1]["logIndex"] = "0x0"
    with refuses("rpc.malformed", ProtocolError):
        read_logs(Contracts(fork, KMS), {KMS}, EVENTS, 1, 1)


def test_wants_the_first_block_where_old_states_are_not_told() -> None:
    class Pruned(Fork):
        def _one(self, method: str, params: Sequence[Any]) -> object:
            if method == "eth_getCode":
                raise UnavailableError("rpc.error", "missing trie node")
            return super()._one(method, params)

    contracts = Contracts(Pruned(), KMS)
    for _ in range(3):
        contracts.endpoint.grow()  # type: ignore[attr-defined]
    with refuses("gov.from_block", ConfigError):
        first_block(contracts, KMS, contracts.pin())


def test_finds_the_block_in_which_a_contract_was_made(site: Site) -> None:
    contracts = Contracts(_rpc(site.chain), bytes.fromhex(site.kms[2:]))
    app_id = bytes.fromhex(site.app()[2:])
    at = contracts.pin()
    assert first_block(contracts, app_id, at) == at.number
