"""What a quorum says of workloads, over endpoints that lag, fail, lie and fork."""

from collections.abc import Sequence
from typing import Any

import pytest

from functions.deploy.record import Workload
from functions.governance.chain import (
    MAX_CALLS,
    MAX_DOUBTFUL,
    MAX_GAS,
    AgreedChain,
    TooManyLogsError,
)
from functions.governance.events import EVENTS
from functions.governance.judgement import Question
from shared.boot_info import BootInfo
from shared.chain import abi
from shared.chain.abi import MALFORMED, REVERTED
from shared.chain.header import BlockRef
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call
from shared.net.quorum import ChainQuorum
from tests.functions.governance.world import COMPOSE_HASH_REMOVED, KMS
from tests.shared.net.rpc_stand_ins import CHAIN_ID, ByBlock, StandIn, block_hash
from tests.shared.refusal import refuses

NOW = 1_800_000_000
MAX_AGE = 300
NO = "Compose hash not allowed"


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def decision(reason: str) -> str:
    text = reason.encode()
    padded = text + bytes(-len(text) % 32)
    return "0x" + (word(not reason) + word(64) + word(len(text)) + padded).hex()


class Node(StandIn):
    """A node that also calls the contract: it gives each call of `said` in turn, for ever the last one."""

    def __init__(self, host: str, *said: str, age: int = 0, **options: object) -> None:
        super().__init__(host, **options)  # type: ignore[arg-type]
        self.said = list(said or ("",))
        self.age = age
        self.logs: list[object] = []
        self.wanted: list[Any] = []
        self.called: list[Any] = []
        self.batches: list[int] = []

    def batch(self, calls: Sequence[Call]) -> list[object]:
        self.batches.append(len(calls))
        if len(calls) > 1 and calls[0][0] == "eth_call" and REVERTED in self.said:
            raise UnavailableError("rpc.reverted", "execution reverted")
        return super().batch(calls)

    def _answer(self, method: str, params: Sequence[object]) -> object:
        if method == "eth_call":
            self.called.append(params[0])
            if not self.called[-1]["data"].startswith(f"0x{abi.IS_APP_ALLOWED.hex()}"):
                return "0x"
            said = self.said.pop(0) if len(self.said) > 1 else self.said[0]
            if said == REVERTED:
                raise UnavailableError("rpc.reverted", "execution reverted")
            return said if said.startswith("0x") else decision(said)
        if method == "eth_getBlockByHash":
            return {"timestamp": hex(NOW - self.age)}
        if method == "eth_getLogs":
            self.wanted += params
            return self.logs
        return super()._answer(method, params)


def chain_of(*nodes: StandIn, quorum: int = 2) -> AgreedChain:
    blocks = ChainQuorum(nodes, chain_id=CHAIN_ID, quorum=quorum)
    return AgreedChain(nodes, blocks, KMS, quorum=quorum, max_head_age=MAX_AGE)


def asked(count: int = 1) -> list[BootInfo]:
    workload = Workload(platform="gcp", app_id="22" * 20, compose_hash="33" * 32, os_image_hash="44" * 32)
    return [Question(workload, None, "UpToDate").boot_info()] * count


HEAD = BlockRef(164, block_hash(164))


def test_what_a_quorum_says_counts() -> None:
    assert chain_of(Node("a"), Node("b")).view(HEAD, asked()).verdicts == ("",)
    assert chain_of(Node("a", NO), Node("b", NO)).view(HEAD, asked()).verdicts == (NO,)


def test_n57_one_lying_node_neither_stops_nor_saves_anything() -> None:
    assert chain_of(Node("a"), Node("liar", NO), Node("c")).view(HEAD, asked()).verdicts == ("",)
    assert chain_of(Node("a", NO), Node("liar"), Node("c", NO)).view(HEAD, asked()).verdicts == (NO,)


def test_n57_two_nodes_that_disagree_say_nothing() -> None:
    view = chain_of(Node("a"), Node("b", NO)).view(HEAD, asked())
    assert view.verdicts == (None,)
    assert "1 of 2" in view.doubt


def test_n57_half_of_them_is_no_majority() -> None:
    view = chain_of(Node("a"), Node("b"), Node("c", NO), Node("d", NO)).view(HEAD, asked())
    assert view.verdicts == (None,)


def test_a_disagreement_about_one_workload_leaves_the_others() -> None:
    view = chain_of(Node("a", "", NO), Node("b", NO, NO)).view(HEAD, asked(2))
    assert view.verdicts == (None, NO)


def test_a_contract_that_reverts_does_not_allow() -> None:
    nodes = Node("a", "", REVERTED, ""), Node("b", "", REVERTED, "")
    assert chain_of(*nodes).view(HEAD, asked(3)).verdicts == ("", REVERTED, "")


def test_many_workloads_are_asked_in_batches() -> None:
    node = Node("a")
    chain_of(node, Node("b")).view(HEAD, asked(MAX_CALLS + 1))
    assert node.batches == [MAX_CALLS, 1]


def test_an_address_without_a_contract_stops_nothing() -> None:
    with refuses("governance.quorum.too_few", UnavailableError) as caught:
        chain_of(Node("a", "0x"), Node("b", "0x")).view(HEAD, asked())
    assert "abi.malformed" in caught.value.message


def reason_of(raw: bytes) -> str:
    return "0x" + (word(0) + word(64) + word(len(raw)) + raw + bytes(-len(raw) % 32)).hex()


@pytest.mark.parametrize(
    "answer", [reason_of(b"\xff\xfe"), reason_of(b"a" * 70_000), "0x00"], ids=["no text", "long", "short"]
)
def test_n57_a_contract_that_answers_nonsense_is_refused_alone(answer: str) -> None:
    nodes = Node("a", "", answer, NO), Node("b", "", answer, NO)
    assert chain_of(*nodes).view(HEAD, asked(3)).verdicts == ("", MALFORMED, NO)


class Failing(Node):
    """A node that fails any batch with the call for which it is told `failing`; it takes them alone."""

    def __init__(self, host: str, *said: str, failing: DstackError, at: int) -> None:
        super().__init__(host, *said)
        self.failing, self.at = failing, at
        self.alone = 0

    def batch(self, calls: Sequence[Call]) -> list[object]:
        is_decision = calls[0][0] == "eth_call" and abi.IS_APP_ALLOWED.hex() in str(calls[0][1])
        if is_decision and len(calls) > 1:
            raise self.failing
        if is_decision:
            self.alone += 1
            if self.alone == self.at:
                raise self.failing
        return super().batch(calls)


TIMED_OUT = UnavailableError("rpc.error", "execution aborted (timeout = 5s)")
OVERSIZE = ProtocolError("net.response.oversize", "more than 2097152 bytes")


def test_n57_a_contract_that_outlasts_the_nodes_own_limit_leaves_the_others() -> None:
    nodes = [Failing(name, "", NO, failing=TIMED_OUT, at=2) for name in "ab"]
    view = chain_of(*nodes).view(HEAD, asked(3))
    assert view.verdicts == ("", None, NO)
    assert "0 of 0" in view.doubt


def test_n57_a_node_without_a_word_on_a_workload_counts_on_the_others() -> None:
    nodes = Failing("a", "", NO, failing=TIMED_OUT, at=2), Node("b", "", NO, NO), Node("c", "", NO, NO)
    assert chain_of(*nodes).view(HEAD, asked(3)).verdicts == ("", NO, NO)


def test_n57_an_answer_without_end_is_refused_alone() -> None:
    nodes = [Failing(name, "", NO, failing=OVERSIZE, at=2) for name in "ab"]
    assert chain_of(*nodes).view(HEAD, asked(3)).verdicts == ("", MALFORMED, NO)


def test_a_node_that_answers_nothing_at_all_is_not_asked_one_by_one() -> None:
    nodes = Node("a"), Node("b")
    for node in nodes:
        node.failure = UnavailableError("rpc.error", "header not found")
    with refuses("governance.quorum.too_few", UnavailableError):
        chain_of(*nodes).view(HEAD, asked(30))
    assert [node.batches for node in nodes] == [[30, 1]] * 2


def test_a_decision_may_burn_so_much_and_no_more() -> None:
    node = Node("a")
    chain_of(node, Node("b")).view(HEAD, asked())
    [called] = node.called
    assert called["gas"] == hex(MAX_GAS)


class Ledger(ByBlock):
    """A node whose contract allowed until block 164, and has not since."""

    def result(self, block: bytes) -> str:
        return decision(NO if block in {block_hash(number) for number in range(164, 170)} else "")


def test_the_state_is_of_the_block_that_is_asked_about() -> None:
    nodes = Ledger("a", head=169), Ledger("b", head=169)
    assert chain_of(*nodes).view(BlockRef(163, block_hash(163)), asked()).verdicts == ("",)
    assert chain_of(*nodes).view(HEAD, asked()).verdicts == (NO,)


def test_n57_a_block_that_was_replaced_says_nothing() -> None:
    with refuses("governance.quorum.too_few", UnavailableError) as caught:
        chain_of(Ledger("a"), Ledger("b")).view(BlockRef(150, block_hash(150, "orphan")), asked())
    assert "not currently canonical" in caught.value.message


def test_n57_a_majority_below_the_quorum_says_nothing() -> None:
    nodes = Node("a", NO), Node("b", NO), Node("c")
    view = chain_of(*nodes, quorum=3).view(HEAD, asked())
    assert view.verdicts == (None,)
    assert "expected 3" in view.doubt


def test_n57_dead_nodes_stop_nothing() -> None:
    dead = Node("dead")
    dead.failure = UnavailableError("net.timeout", "too slow")
    chain = chain_of(dead, Node("b"))
    with refuses("governance.quorum.too_few", UnavailableError):
        chain.view(HEAD, asked())
    with refuses("governance.quorum.too_few", UnavailableError):
        chain.is_canonical(HEAD)
    with refuses("governance.quorum.too_few", UnavailableError):
        chain.logs([KMS], 1, 2)


def test_n57_a_head_that_is_old_is_refused() -> None:
    with refuses("governance.chain.behind", UnavailableError):
        chain_of(Node("a", age=MAX_AGE + 1), Node("b", age=MAX_AGE + 1)).blocks(NOW)
    assert chain_of(Node("a", age=MAX_AGE), Node("b", age=MAX_AGE)).blocks(NOW)[1] == HEAD


def test_n57_nodes_that_date_a_block_differently_are_refused() -> None:
    with refuses("governance.quorum.disagreement", UnavailableError):
        chain_of(Node("a", age=1), Node("b", age=2)).blocks(NOW)


@pytest.mark.parametrize("ages", [(0, 0, 9000, 9000), (9000, 9000, 0, 0)])
def test_n57_half_of_them_tell_no_time(ages: Sequence[int]) -> None:
    nodes = (Node(name, age=age) for name, age in zip("abcd", ages, strict=True))
    with refuses("governance.quorum.disagreement", UnavailableError):
        chain_of(*nodes).blocks(NOW)


def test_n57_a_node_1000_blocks_behind_is_outvoted_or_refused() -> None:
    late = Node("late", head=1164, finalized=1100)
    slow = Node("slow", head=164, finalized=100, age=12_000)
    assert chain_of(late, Node("b", head=1164, finalized=1100), slow).blocks(NOW)[1].number == 1164
    behind = Node("b", head=1164, finalized=1100, age=12_000)
    with refuses("governance.chain.behind", UnavailableError):
        chain_of(behind, slow).blocks(NOW)


def test_a_block_that_was_replaced_is_not_canonical() -> None:
    assert chain_of(Node("a"), Node("b")).is_canonical(HEAD)
    fork = Node("a", fork="other", fork_at=150), Node("b", fork="other", fork_at=150)
    assert not chain_of(*fork).is_canonical(HEAD)


def test_n57_one_node_neither_keeps_a_block_nor_drops_it() -> None:
    honest, forked = Node("honest"), [Node(name, fork="other", fork_at=150) for name in "ab"]
    assert not chain_of(honest, *forked).is_canonical(HEAD)
    assert chain_of(honest, Node("c"), forked[0]).is_canonical(HEAD)
    with refuses("governance.quorum.disagreement", UnavailableError):
        chain_of(honest, forked[0]).is_canonical(HEAD)


def test_a_block_above_the_end_of_the_chain_is_not_canonical() -> None:
    assert not chain_of(Node("a"), Node("b")).is_canonical(BlockRef(200, block_hash(200)))


def log_json(index: int, **fields: str) -> dict[str, Any]:
    return {
        "address": f"0x{KMS.hex()}",
        "topics": [f"0x{COMPOSE_HASH_REMOVED.hex()}"],
        "blockHash": f"0x{block_hash(7).hex()}",
        "blockNumber": "0x7",
        "logIndex": hex(index),
    } | fields


def test_n57_logs_that_were_not_asked_for_are_dropped() -> None:
    liar = Node("liar")
    liar.logs = [
        log_json(1, address="0x" + "99" * 20),
        log_json(2, blockNumber="0xa"),
        log_json(3, blockNumber=hex(2**61)),
        log_json(4, blockNumber="0x0"),
        log_json(5) | {"removed": True},
        log_json(6) | {"topics": ["0x" + "77" * 32]},
    ]
    assert chain_of(Node("a"), Node("b"), liar).logs([KMS], 1, 9) == []


def test_n57_logs_that_one_node_invents_are_bounded_and_hide_no_true_one() -> None:
    liar, a, b = Node("liar"), Node("a"), Node("b")
    liar.logs = [log_json(number) for number in range(400)]
    a.logs = b.logs = [log_json(number) for number in range(1000, 1000 + 2 * MAX_DOUBTFUL)]
    found = [one.log_index for one in chain_of(liar, a, b).logs([KMS], 1, 9)]
    assert found == [*range(MAX_DOUBTFUL), *range(1000, 1000 + 2 * MAX_DOUBTFUL)]


def test_logs_of_our_events_alone_are_asked_for() -> None:
    node = Node("a")
    chain_of(node, Node("b")).logs([KMS], 1, 9)
    [wanted] = node.wanted
    assert wanted["topics"] == [[f"0x{one.hex()}" for one in EVENTS]]
    assert wanted["address"] == [f"0x{KMS.hex()}"]


def test_n57_an_invented_log_hides_no_true_one() -> None:
    liar, honest = Node("liar"), Node("honest")
    app = bytes.fromhex("22" * 20)
    liar.logs, honest.logs = [log_json(1)], [log_json(1, address=f"0x{app.hex()}")]
    assert {one.address for one in chain_of(liar, honest).logs([KMS, app], 1, 9)} == {KMS, app}


@pytest.mark.parametrize(
    ("failure", "is_oversize"),
    [
        (ProtocolError("rpc.malformed", "more than 10000 lists and objects"), True),
        (ProtocolError("net.response.oversize", "more than the expected bytes"), True),
        (UnavailableError("rpc.error", "query returned more than 10000 results"), False),
    ],
)
def test_a_range_that_is_too_much_may_be_asked_for_in_parts(
    failure: DstackError, *, is_oversize: bool
) -> None:
    nodes = Node("a"), Node("b")
    for node in nodes:
        node.failure = failure
    with refuses("governance.quorum.too_few", TooManyLogsError) as caught:
        chain_of(*nodes).logs([KMS], 1, 9)
    assert isinstance(caught.value, TooManyLogsError)
    assert caught.value.is_oversize is is_oversize


@pytest.mark.parametrize("code", ["net.timeout", "net.unreachable", "rpc.status"])
def test_nodes_that_are_down_are_not_asked_for_parts(code: str) -> None:
    nodes = Node("a"), Node("b")
    for node in nodes:
        node.failure = UnavailableError(code, "down")
    with refuses("governance.quorum.too_few", UnavailableError) as caught:
        chain_of(*nodes).logs([KMS], 1, 9)
    assert not isinstance(caught.value, TooManyLogsError)


def test_logs_of_all_nodes_count_once() -> None:
    a, b = Node("a"), Node("b")
    a.logs = [log_json(1), {"topics": []}]
    b.logs = [log_json(1), log_json(0)]
    assert [one.log_index for one in chain_of(a, b).logs([KMS], 1, 9)] == [0, 1]
