"""The chain as its users meet it: a process on loopback, on both engines, with our contracts on it."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import rlp
from trie import HexaryTrie

from cli.devchain.artifacts import artifact
from cli.devchain.governance import Deployment, Governance
from cli.devchain.launcher import Chain, find_anvil, start_chain
from cli.devchain.node import MAX_BODY
from shared.keccak import keccak256
from tests.conftest import QUICK_BLOCKS

COMPOSE, OS_IMAGE = b"c" * 32, b"o" * 32
IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC
QUANTITIES = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas"} | {
    "blobGasUsed",
    "excessBlobGas",
}
HEADER_FIELDS = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce"),
    *("baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot"),
    "requestsHash",
)


class Site:
    """A running chain with the contracts deployed and one app made, and a bare JSON-RPC client."""

    def __init__(self, chain: Chain) -> None:
        self.url = chain.url
        self.governance = Governance(chain.url, chain.accounts[0])
        self.deployment: Deployment = self.governance.deploy()
        self.app_id = self.governance.deploy_app(compose_hash=COMPOSE, allow_any_device=True)
        self.final = self.governance.finalize(self.governance.add_os_image(OS_IMAGE))

    def call(self, method: str, *params: object) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return httpx.post(self.url, json=body).json()["result"]

    def slot(self, address: bytes, slot: int, tag: str) -> int:
        """Read a slot by proof: from the block's own header up."""
        block = self.call("eth_getBlockByNumber", tag, False)
        answer = self.call(
            "eth_getProof", "0x" + address.hex(), [f"0x{slot:064x}"], {"blockHash": block["hash"]}
        )
        account = rlp.decode(proven(block["stateRoot"], keccak256(address), answer["accountProof"]))
        assert [account[2].hex(), account[3].hex()] == [answer["storageHash"][2:], answer["codeHash"][2:]]
        cell = answer["storageProof"][0]
        raw = proven(answer["storageHash"], keccak256(slot.to_bytes(32, "big")), cell["proof"])
        value = int.from_bytes(rlp.decode(raw), "big") if raw else 0
        assert value == int(cell["value"], 16)
        return value


def proven(root: str, key: bytes, nodes: list[str]) -> bytes:
    decoded = [rlp.decode(bytes.fromhex(node[2:])) for node in nodes]
    return bytes(HexaryTrie.get_from_proof(bytes.fromhex(root[2:]), key, decoded))


@pytest.fixture(scope="module", params=["py-evm", "anvil"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "anvil" and find_anvil() is None:
        pytest.skip("no anvil on this machine: install node and npm, then run make setup")
    with start_chain(request.param, block_time=QUICK_BLOCKS) as chain:
        yield Site(chain)


@pytest.fixture(scope="module")
def own_node() -> Iterator[Chain]:
    with start_chain("py-evm", block_time=0) as chain:
        yield chain


def test_addresses_are_upstreams_golden_ones(site: Site) -> None:
    assert site.deployment.app_implementation.hex() == "5fbdb2315678afecb367f032d93f642f64180aa3"
    assert site.deployment.kms.hex() == "9fe46736679d2d9a65f0992f2272de9f3c7fa6e0"
    assert site.app_id.hex() == "75537828f2ce51be7289709686a69cbfdbb714f1"


@pytest.mark.parametrize("tag", ["earliest", "finalized", "latest"])
def test_header_in_json_hashes_to_the_block_hash(site: Site, tag: str) -> None:
    block = site.call("eth_getBlockByNumber", tag, False)
    header = [
        int(block[name], 16) if name in QUANTITIES else bytes.fromhex(block[name][2:])
        for name in HEADER_FIELDS
        if name in block
    ]
    assert "0x" + keccak256(rlp.encode(header)).hex() == block["hash"]


def test_finalized_is_two_behind_the_head_while_blocks_come(site: Site) -> None:
    tags = ("finalized", "latest", "finalized")  # in this order a block mined in between cannot fool us
    before, head, after = (int(site.call("eth_getBlockByNumber", tag, False)["number"], 16) for tag in tags)
    assert site.final <= before <= head - 2 <= after


def test_batch_is_answered(site: Site) -> None:
    batch = [{"jsonrpc": "2.0", "id": n, "method": "eth_chainId", "params": []} for n in range(3)]
    answers = httpx.post(site.url, json=batch).json()
    assert {one["id"]: one["result"] for one in answers} == dict.fromkeys(range(3), "0x7a69")


@pytest.mark.parametrize("tag", ["finalized", "latest"])
def test_policy_is_provable_in_both_views(site: Site, tag: str) -> None:
    """The slots of the specification, contracts section 6, read by proof alone."""
    kms, app = site.deployment.kms, site.app_id
    registered = int.from_bytes(keccak256(app.rjust(32, b"\0"), (5).to_bytes(32, "big")), "big")
    image = int.from_bytes(keccak256(OS_IMAGE, (8).to_bytes(32, "big")), "big")
    compose = int.from_bytes(keccak256(COMPOSE, (0).to_bytes(32, "big")), "big")
    assert site.slot(kms, registered, tag) == 1
    assert site.slot(kms, image, tag) == 1
    assert site.slot(kms, 9, tag) == int.from_bytes(site.deployment.app_implementation, "big")
    assert site.slot(kms, IMPLEMENTATION_SLOT, tag) == int.from_bytes(
        site.deployment.kms_implementation, "big"
    )
    assert site.slot(app, IMPLEMENTATION_SLOT, tag) == int.from_bytes(
        site.deployment.app_implementation, "big"
    )
    assert site.slot(app, compose, tag) == 1
    assert site.slot(app, 1, tag) == 0x0100  # byte 1: any device
    assert site.slot(app, 3, tag) == 0


@pytest.mark.parametrize("name", ["DstackApp", "DstackKms"])
def test_deployed_implementation_is_the_artefact_with_its_own_address_in_it(site: Site, name: str) -> None:
    deployment = site.deployment
    address = deployment.app_implementation if name == "DstackApp" else deployment.kms_implementation
    code = bytearray.fromhex(site.call("eth_getCode", "0x" + address.hex(), "latest")[2:])
    for offset in artifact(name).immutable_offsets:
        assert bytes(code[offset : offset + 32]) == address.rjust(32, b"\0")
        code[offset : offset + 32] = bytes(32)
    assert "0x" + keccak256(bytes(code)).hex() == artifact(name).masked_keccak256


def test_both_proxies_are_the_known_proxy(site: Site) -> None:
    for address in (site.deployment.kms, site.app_id):
        answer = site.call("eth_getProof", "0x" + address.hex(), [], "latest")
        assert answer["codeHash"] == artifact("ERC1967Proxy").masked_keccak256


# ---- our own node's HTTP face ----


def test_body_above_the_limit_is_refused(own_node: Chain) -> None:
    assert httpx.post(own_node.url, content=b" " * (MAX_BODY + 1)).status_code == 413


def test_only_post_is_served(own_node: Chain) -> None:
    assert httpx.get(own_node.url).status_code == 405


def test_node_mines_each_transaction_when_it_has_no_block_time(own_node: Chain) -> None:
    before = httpx.post(own_node.url, json={"id": 1, "method": "eth_blockNumber"}).json()["result"]
    owner = Governance(own_node.url, own_node.accounts[3])
    owner.send(owner.constructor("DstackApp"), gas=4_000_000)
    after = httpx.post(own_node.url, json={"id": 1, "method": "eth_blockNumber"}).json()["result"]
    assert int(after, 16) == int(before, 16) + 1


def test_notification_over_http_gets_an_empty_body(own_node: Chain) -> None:
    answer = httpx.post(own_node.url, json={"jsonrpc": "2.0", "method": "eth_chainId"})
    assert (answer.status_code, answer.content) == (200, b"")


def test_error_over_http_is_json(own_node: Chain) -> None:
    answer = httpx.post(own_node.url, content=b"{")
    assert json.loads(answer.content)["error"]["code"] == -32700
