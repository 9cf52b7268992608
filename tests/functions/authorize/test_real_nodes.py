"""Real nodes that are wrong: another history, a thousand blocks behind, a reorganisation, a lie."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, find_anvil, start_chain
from functions.authorize.request import parse_boot_info
from functions.authorize.service import AuthorizeService
from functions.authorize.settings import MAX_AGE, Settings
from shared.chain.bundle import bundle_from_wire
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy, decide
from shared.chain.header import BlockRef
from shared.net.json_rpc import Endpoint
from shared.net.proof_source import ProofRequest, ProofSource
from shared.net.quorum import ChainQuorum
from tests.functions.authorize.conftest import rpc
from tests.shared.refusal import refuses

pytestmark = pytest.mark.skipif(
    find_anvil() is None, reason="no anvil on this machine: install node and npm, then run make setup"
)
COMPOSE, DEVICE, IMAGE = b"c" * 32, b"d" * 32, b"o" * 32


class Node:
    """One anvil with the contracts of its own: the same addresses on each."""

    def __init__(self, chain: Chain, host: str) -> None:
        self.owner = Governance(chain.url, chain.accounts[0])
        self.kms = self.owner.deploy().kms
        self.app_id = self.owner.deploy_app(compose_hash=COMPOSE, device_id=DEVICE)
        self.owner.settle(self.owner.add_os_image(IMAGE))
        self.rpc = rpc(chain.url)
        # two nodes of one machine are two hosts here
        self.rpc.host = host

    def mine(self, count: int, seconds: int = 1) -> None:
        self.rpc.call("anvil_mine", [hex(count), hex(seconds)])

    def block(self, tag: str = "latest") -> dict[str, Any]:
        found = self.rpc.call("eth_getBlockByNumber", [tag, False])
        assert isinstance(found, dict)
        return found

    def body(self) -> dict[str, str]:
        return {
            "mrAggregated": "",
            "osImageHash": IMAGE.hex(),
            "appId": self.app_id.hex(),
            "composeHash": COMPOSE.hex(),
            "instanceId": "",
            "deviceId": DEVICE.hex(),
        }

    def time(self) -> int:
        return int(self.block()["timestamp"], 16)

    def ref(self, tag: str) -> BlockRef:
        block = self.block(tag)
        return BlockRef(int(block["number"], 16), bytes.fromhex(block["hash"][2:]))


@pytest.fixture
def one() -> Iterator[Node]:
    with start_chain("anvil", block_time=0) as chain:
        yield Node(chain, "one.example")


@pytest.fixture
def other() -> Iterator[Node]:
    with start_chain("anvil", block_time=0) as chain:
        yield Node(chain, "other.example")


class Asked:
    """A service over nodes, at the time of the first one's head, and what it reported."""

    def __init__(self, *nodes: Node, endpoint: Endpoint | None = None, max_head_age: int = MAX_AGE) -> None:
        self.codes: list[str] = []
        self.node = nodes[0]
        settings = Settings(
            rpc_urls=tuple(f"http://{node.rpc.host}" for node in nodes),
            kms_contract=nodes[0].kms,
            chain_id=31337,
            quorum=len(nodes),
            max_head_age=max_head_age,
        )
        self.service = AuthorizeService(
            settings,
            [endpoint] if endpoint else [node.rpc for node in nodes],
            lambda code, _: self.codes.append(code),
            self.node.time,
        )

    def app(self, query: str = "") -> dict[str, Any]:
        body, headers = json.dumps(self.node.body()).encode(), {"content-type": "application/json"}
        return self.service.handle("POST", "/bootAuth/app", query, headers, body).body


def test_n57_nodes_of_two_histories_are_refused(one: Node, other: Node) -> None:
    other.owner.settle(other.owner.remove_compose_hash(other.app_id, COMPOSE))
    one.mine(1)
    asked = Asked(one, other)
    assert asked.app()["isAllowed"] is False
    assert asked.codes == ["authorize.quorum.disagreement"]


def test_n57_a_node_a_thousand_blocks_behind_is_refused(one: Node, other: Node) -> None:
    one.mine(1000, 12)
    asked = Asked(one, other, max_head_age=120)
    assert asked.app()["isAllowed"] is False
    assert asked.codes == ["authorize.block.stale"]
    alone = Asked(one, max_head_age=120)
    assert alone.app()["isAllowed"] is True


def test_a_block_that_was_reorganised_away_is_no_answer(one: Node) -> None:
    one.mine(3)
    query = f"proof=1&finalized=0x{one.ref('finalized').hash.hex()}&head=0x{one.ref('latest').hash.hex()}"
    asked = Asked(one)
    assert asked.app(query)["isAllowed"] is True
    one.rpc.call("anvil_reorg", [2, []])
    assert asked.app(query)["isAllowed"] is False
    assert asked.codes == ["proof.provider.cannot_prove"]


def test_n57_a_node_that_lies_in_its_answer_is_found_out_by_its_proof(one: Node) -> None:
    """It says yes by its calls; what it can prove says no, and the proof decides."""

    class Liar:
        host, secure = "liar.example", False

        def batch(self, calls: Any) -> list[object]:
            answers = one.rpc.batch(calls)
            yes = "0x" + (1).to_bytes(32, "big").hex() + (64).to_bytes(32, "big").hex() + "00" * 32
            return [
                yes if method == "eth_call" and len(params[0]["data"]) > 10 else answer
                for (method, params), answer in zip(calls, answers, strict=True)
            ]

    one.owner.settle(one.owner.remove_compose_hash(one.app_id, COMPOSE))
    one.mine(3)
    finalized, head = one.ref("finalized"), one.ref("latest")
    query = f"proof=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"
    answer = Asked(one, endpoint=Liar()).app(query)
    assert answer["isAllowed"] is True
    decision = decide(
        bundle_from_wire(answer["proof"]),
        kind="app",
        boot_info=parse_boot_info(one.body()),
        chain=ChainPolicy(chain_id=31337, kms_contract=one.kms, codes=code_list()),
        finalized=finalized,
        head=head,
        now=one.time(),
    )
    assert (decision.is_allowed, decision.reason) == (False, "Compose hash not allowed")


def test_n57_a_key_server_whose_quorum_is_a_thousand_blocks_behind_decides_nothing(one: Node) -> None:
    """Of two that must agree one is behind: the blocks that both know are old, and their proofs are too."""

    class Behind:
        host, secure = "behind.example", False

        def batch(self, calls: Any) -> list[object]:
            newest = one.ref("latest").number
            tags = {"latest": newest - 1000, "finalized": newest - 1002}
            return one.rpc.batch(
                [
                    (method, [hex(tags[params[0]]), False] if params and params[0] in tags else params)
                    for method, params in calls
                ]
            )

    one.mine(1010, 12)
    quorum = ChainQuorum([one.rpc, Behind()], chain_id=31337, allow_plain_http=True)
    finalized, head = quorum.blocks()
    assert (finalized.number, head.number) == (
        one.ref("latest").number - 1002,
        one.ref("latest").number - 1000,
    )
    boot_info = parse_boot_info(one.body())
    bundle = ProofSource(one.rpc, one.kms).gather(ProofRequest("app", boot_info), finalized.hash, head.hash)
    with refuses("proof.header.stale"):
        decide(
            bundle,
            kind="app",
            boot_info=boot_info,
            chain=ChainPolicy(chain_id=31337, kms_contract=one.kms, codes=code_list()),
            finalized=finalized,
            head=head,
            now=one.time(),
        )
