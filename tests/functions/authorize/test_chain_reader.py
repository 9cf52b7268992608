"""Several endpoints, one answer: what they contradict each other about is refused, and so is what is old."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from functions.authorize.service import Answer, AuthorizeService
from functions.authorize.settings import Settings
from shared.errors import DstackError, ProtocolError, UnavailableError
from shared.net.json_rpc import Call, Endpoint
from tests.functions.authorize.conftest import rpc
from tests.functions.authorize.test_service import DENIED, named_blocks

Body = Callable[..., dict[str, Any]]


class Node:
    """Passes calls on to the real chain, counts them, and spoils one method's results as a test says."""

    secure = False

    def __init__(self, inner: Endpoint, host: str) -> None:
        self.inner, self.host = inner, host
        self.batches: list[list[str]] = []
        self.lies: dict[str, Callable[[Sequence[object], Any], object]] = {}
        self.failure: DstackError | None = None
        self.fails_on = ""

    def batch(self, calls: Sequence[Call]) -> list[object]:
        self.batches.append([method for method, _ in calls])
        if self.failure is not None and (not self.fails_on or any(one == self.fails_on for one, _ in calls)):
            raise self.failure
        results = self.inner.batch(calls)
        return [
            self.lies[method](params, result) if method in self.lies else result
            for (method, params), result in zip(calls, results, strict=True)
        ]


class Asked:
    """A service over some nodes, and what it reported."""

    def __init__(self, settings: Settings, nodes: Sequence[Node], **changes: Any) -> None:
        self.codes: list[str] = []
        now = changes.pop("now", time.time)
        changed = msgspec.structs.replace(
            settings,
            rpc_urls=tuple(f"http://{node.host}" for node in nodes),
            **{"quorum": len(nodes) // 2 + 1, **changes},
        )
        self.service = AuthorizeService(changed, nodes, lambda code, _: self.codes.append(code), now)

    def app(self, body: dict[str, Any], query: str = "") -> Answer:
        headers = {"content-type": "application/json"}
        return self.service.handle("POST", "/bootAuth/app", query, headers, json.dumps(body).encode())

    def refusal(self, body: dict[str, Any], query: str = "") -> str:
        """Ask; return the one code that was reported with a denial that tells nothing."""
        answer = self.app(body, query)
        assert {key: value for key, value in answer.body.items() if key != "code"} == DENIED
        [code] = self.codes
        return code


def nodes_of(settings: Settings, count: int) -> list[Node]:
    return [Node(rpc(settings.rpc_urls[0]), f"node-{number}.example") for number in range(count)]


def proof_query(settings: Settings) -> str:
    finalized, head = named_blocks(settings)
    return f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"


@pytest.fixture
def two(settings: Settings) -> list[Node]:
    return nodes_of(settings, 2)


@pytest.fixture
def three(settings: Settings) -> list[Node]:
    return nodes_of(settings, 3)


# ---- round trips ----


def test_a_decision_takes_two_round_trips_of_each_endpoint(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    assert Asked(settings, two).app(allowed_body()).body["isAllowed"] is True
    assert [len(node.batches) for node in two] == [2, 2]


def test_a_proven_decision_takes_two_round_trips_where_the_blocks_are_named(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    answer = Asked(settings, two).app(allowed_body(), proof_query(settings))
    assert "proof" in answer.body
    assert [len(node.batches) for node in two] == [2, 1]


def test_one_more_finds_the_blocks_of_a_proof_that_nobody_named(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    assert "proof" in Asked(settings, two).app(allowed_body(), "proof=1").body
    assert [len(node.batches) for node in two] == [3, 2]


def test_the_whole_gateway_id_is_read_in_the_same_two(settings: Settings, allowed_body: Body) -> None:
    """A denied decision needs no more than an allowed one."""
    [node] = nodes_of(settings, 1)
    Asked(settings, [node]).app(allowed_body(composeHash="cc" * 32), proof_query(settings))
    assert len(node.batches) == 2


# ---- agreement ----


def test_two_that_agree_are_believed(settings: Settings, two: list[Node], allowed_body: Body) -> None:
    asked = Asked(settings, two)
    assert asked.app(allowed_body()).body["isAllowed"] is True
    assert asked.codes == []


def denies(params: Sequence[object], result: Any) -> object:
    """Answer the decision alone with a denial."""
    del params
    return "0x" + "00" * 31 + "00" + result[66:] if len(result) > 2 + 2 * 64 else result


def test_n57_two_that_disagree_are_refused(settings: Settings, two: list[Node], allowed_body: Body) -> None:
    two[1].lies["eth_call"] = denies
    assert Asked(settings, two).refusal(allowed_body()) == "authorize.quorum.disagreement"


def test_n57_one_that_disagrees_is_not_outvoted(
    settings: Settings, three: list[Node], allowed_body: Body
) -> None:
    three[2].lies["eth_call"] = denies
    assert Asked(settings, three).refusal(allowed_body()) == "authorize.quorum.disagreement"


def test_n57_two_that_disagree_about_a_named_block_are_refused(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    two[1].lies["eth_call"] = denies
    code = Asked(settings, two).refusal(allowed_body(), proof_query(settings))
    assert code == "authorize.quorum.disagreement"


def test_n57_two_that_know_different_newest_blocks_are_refused(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    two[1].lies["eth_getBlockByNumber"] = lambda _, block: {**block, "hash": "0x" + "11" * 32}
    assert Asked(settings, two).refusal(allowed_body()) == "authorize.quorum.disagreement"


def test_n57_a_revert_by_the_word_of_one_is_a_refusal(
    settings: Settings, three: list[Node], allowed_body: Body
) -> None:
    three[2].failure = UnavailableError("rpc.reverted", "execution reverted")
    three[2].fails_on = "eth_call"
    assert Asked(settings, three).refusal(allowed_body()) == "rpc.reverted"


def test_one_that_is_down_is_tolerated_when_enough_are_left(
    settings: Settings, three: list[Node], allowed_body: Body
) -> None:
    three[0].failure = UnavailableError("net.timeout", "slow")
    assert Asked(settings, three).app(allowed_body()).body["isAllowed"] is True


def test_one_that_lags_a_little_is_left_out(
    settings: Settings, three: list[Node], allowed_body: Body
) -> None:
    _, head = named_blocks(settings)
    three[0].lies["eth_getBlockByNumber"] = lambda _, block: {**block, "number": hex(head.number - 1)}
    assert Asked(settings, three).app(allowed_body()).body["isAllowed"] is True
    assert [len(node.batches) for node in three] == [1, 2, 2]


@pytest.mark.parametrize(
    "failure",
    [
        UnavailableError("net.timeout", "slow"),
        UnavailableError("rpc.status", "http 500"),
        ProtocolError("rpc.malformed", "truncated"),
    ],
    ids=["slow", "500", "truncated"],
)
@pytest.mark.parametrize("proven", [False, True])
def test_n57_too_few_endpoints_are_refused(
    settings: Settings, two: list[Node], allowed_body: Body, failure: DstackError, *, proven: bool
) -> None:
    two[0].failure = failure
    query = proof_query(settings) if proven else ""
    assert Asked(settings, two).refusal(allowed_body(), query) == "authorize.quorum.too_few"


def test_n57_one_endpoint_that_fails_keeps_its_code(settings: Settings, allowed_body: Body) -> None:
    [node] = nodes_of(settings, 1)
    node.failure = UnavailableError("net.timeout", "slow")
    assert Asked(settings, [node]).refusal(allowed_body()) == "net.timeout"


def test_another_endpoint_proves_what_the_first_cannot(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    two[0].failure = UnavailableError("rpc.error", "distance to target block exceeds maximum proof window")
    two[0].fails_on = "eth_getProof"
    assert "proof" in Asked(settings, two).app(allowed_body(), proof_query(settings)).body


def test_n57_no_endpoint_that_proves_is_a_refusal(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    for node in two:
        node.lies["eth_getProof"] = lambda _params, _result: None
    code = Asked(settings, two).refusal(allowed_body(), proof_query(settings))
    assert code == "proof.provider.cannot_prove"


def test_n57_an_endpoint_that_lies_about_one_slot_proves_nothing(
    settings: Settings, allowed_body: Body
) -> None:
    def spoilt(_params: Sequence[object], proof: Any) -> object:
        slots = [
            {**slot, "proof": [*slot["proof"][:-1], slot["proof"][-1][:-2] + "02"]} if slot["proof"] else slot
            for slot in proof["storageProof"]
        ]
        return {**proof, "storageProof": slots}

    [node] = nodes_of(settings, 1)
    node.lies["eth_getProof"] = spoilt
    code = Asked(settings, [node]).refusal(allowed_body(), proof_query(settings))
    assert code == "proof.provider.cannot_prove"


# ---- the chain, the contract, and how old the block is ----


@pytest.mark.parametrize("proven", [False, True])
def test_n57_another_chain_is_refused(
    settings: Settings, two: list[Node], allowed_body: Body, *, proven: bool
) -> None:
    two[1].lies["eth_chainId"] = lambda *_: "0x1"
    query = proof_query(settings) if proven else ""
    assert Asked(settings, two).refusal(allowed_body(), query) == "authorize.chain_id"


def test_n57_endpoints_of_two_chains_are_refused_where_any_will_do(
    settings: Settings, two: list[Node], allowed_body: Body
) -> None:
    two[1].lies["eth_chainId"] = lambda *_: "0x1"
    code = Asked(settings, two, chain_id=None).refusal(allowed_body())
    assert code == "authorize.quorum.disagreement"


def test_n57_another_chain_that_does_not_know_the_block_is_named(
    settings: Settings, allowed_body: Body
) -> None:
    [node] = nodes_of(settings, 1)
    node.failure, node.fails_on = UnavailableError("rpc.error", "unknown block"), "eth_call"
    node.lies["eth_chainId"] = lambda *_: "0x1"
    assert Asked(settings, [node]).refusal(allowed_body(), proof_query(settings)) == "authorize.chain_id"


def test_n57_an_address_without_a_contract_is_refused(settings: Settings, allowed_body: Body) -> None:
    asked = Asked(settings, nodes_of(settings, 1), kms_contract=b"\x77" * 20)
    assert asked.refusal(allowed_body()) == "authorize.contract"


def behind(_params: Sequence[object], block: Any) -> object:
    """Be 1,000 blocks of 12 seconds behind."""
    return {**block, "timestamp": hex(int(block["timestamp"], 16) - 12_000)}


def head_time(settings: Settings) -> int:
    [block] = rpc(settings.rpc_urls[0]).batch([("eth_getBlockByNumber", ["latest", False])])
    return int(block["timestamp"], 16)  # type: ignore[index]


def test_n57_an_endpoint_a_thousand_blocks_behind_is_refused(settings: Settings, allowed_body: Body) -> None:
    [node] = nodes_of(settings, 1)
    node.lies["eth_getBlockByNumber"] = behind
    now = head_time(settings)
    asked = Asked(settings, [node], max_head_age=120, now=lambda: now)
    assert asked.refusal(allowed_body()) == "authorize.block.stale"


def test_n57_an_endpoint_so_far_behind_that_it_lacks_the_named_block_is_refused(
    settings: Settings, allowed_body: Body
) -> None:
    [node] = nodes_of(settings, 1)
    node.failure, node.fails_on = UnavailableError("rpc.error", "unknown block"), "eth_call"
    node.lies["eth_getBlockByNumber"] = behind
    now = head_time(settings)
    asked = Asked(settings, [node], max_head_age=120, now=lambda: now)
    assert asked.refusal(allowed_body(), proof_query(settings)) == "authorize.block.stale"


@pytest.mark.parametrize(("late", "is_allowed"), [(120, True), (121, False), (-300, True), (-301, False)])
def test_n57_only_a_block_of_now_counts(
    settings: Settings, allowed_body: Body, *, late: int, is_allowed: bool
) -> None:
    now = head_time(settings) + late
    asked = Asked(settings, nodes_of(settings, 1), max_head_age=120, now=lambda: now)
    assert asked.app(allowed_body()).body["isAllowed"] is is_allowed
    expected = "authorize.block.stale" if late > 0 else "authorize.block.future"
    assert asked.codes == ([] if is_allowed else [expected])


def test_n57_a_named_block_that_is_old_is_refused(settings: Settings, allowed_body: Body) -> None:
    now = head_time(settings) + 121
    asked = Asked(settings, nodes_of(settings, 1), max_head_age=120, now=lambda: now)
    assert asked.refusal(allowed_body(), proof_query(settings)) == "authorize.block.stale"


def test_the_info_page_tells_of_several_endpoints(settings: Settings, two: list[Node]) -> None:
    answer = Asked(settings, two).service.handle("GET", "/", "", {}, b"").body
    assert (answer["ethRpcUrl"], answer["quorum"]) == ("http://node-0.example", 2)
    assert answer["ethRpcUrls"] == ("http://node-0.example", "http://node-1.example")


@pytest.mark.parametrize("name", ["finalized", "head"])
def test_a_query_that_names_one_block_of_two_is_an_error(
    settings: Settings, allowed_body: Body, name: str
) -> None:
    asked = Asked(settings, nodes_of(settings, 1))
    assert asked.app(allowed_body(), f"proof=1&{name}=0x{'11' * 32}").status == 500
    assert asked.codes == ["authorize.query.invalid"]
