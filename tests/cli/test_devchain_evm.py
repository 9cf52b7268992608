"""Our own node's chain in process, without a server and with a clock of its own."""

import json
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import rlp
from eth_account import Account
from eth_utils.address import to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st
from trie import HexaryTrie

from cli.devchain.accounts import BALANCE, CHAIN_ID, development_accounts
from cli.devchain.evm import GAS_LIMIT, Evm
from cli.devchain.methods import MAX_BATCH, MAX_PROOF_SLOTS, Methods
from shared.keccak import keccak256

START = 1_800_000_000
ALICE, BOB = development_accounts()[:2]
# runtime: store the call data's first word in slot 1, log it under topic 7, return it
STORES = "5f35806001555f52600760205fa160205ff3"
CREATES_STORES = f"0x71{STORES}5f526012600ef3"
REVERTS = "0x625f5ffd5f526003601df3"


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


class Client:
    """Calls Methods as a peer would, in bytes."""

    def __init__(self) -> None:
        self.clock = Clock()
        evm = Evm({one.address_bytes: BALANCE for one in (ALICE, BOB)}, now=START)
        self.methods = Methods(evm, clock=self.clock)
        self._ids: Iterator[int] = count(1)

    def post(self, body: object) -> Any:
        answer = self.methods.answer(body if isinstance(body, bytes) else json.dumps(body).encode())
        return None if answer is None else json.loads(answer)

    def ask(self, method: str, *params: object) -> Any:
        return self.post({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})

    def call(self, method: str, *params: object) -> Any:
        return self.ask(method, *params)["result"]

    def refusal(self, method: str, *params: object) -> int:
        return int(self.ask(method, *params)["error"]["code"])

    def signed(self, *, nonce: int, account: Any = ALICE, **changes: Any) -> str:
        fields = {
            "type": 2,
            "chainId": CHAIN_ID,
            "nonce": nonce,
            "to": BOB.address,
            "value": 1,
            "gas": 21_000,
            "maxFeePerGas": 5 * 10**9,
            "maxPriorityFeePerGas": 10**9,
        }
        one = Account.sign_transaction(fields | changes, account.private_key)
        return "0x" + bytes(one.raw_transaction).hex()

    def create(self, code: str, *, nonce: int = 0) -> str:
        raw = self.signed(nonce=nonce, to="", value=0, gas=500_000, data=code)
        sent = self.call("eth_sendRawTransaction", raw)
        self.call("evm_mine")
        made = self.call("eth_getTransactionReceipt", sent)["contractAddress"]
        return str(to_checksum_address(made))


@pytest.fixture
def client() -> Client:
    return Client()


# ---- blocks ----


def test_chain_starts_with_funded_accounts(client: Client) -> None:
    assert client.call("eth_chainId") == hex(31337)
    assert client.call("net_version") == "31337"
    assert int(client.call("eth_getBalance", ALICE.address, "latest"), 16) == 10_000 * 10**18


def test_finalized_is_two_behind_the_head(client: Client) -> None:
    seen = []
    for _ in range(5):
        tags = ("latest", "pending", "safe", "finalized", "earliest")
        seen.append([int(client.call("eth_getBlockByNumber", tag, False)["number"], 16) for tag in tags])
        client.call("evm_mine")
    assert seen == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 2, 1, 0, 0], [3, 3, 2, 1, 0], [4, 4, 3, 2, 0]]


def test_block_is_stamped_with_the_clock(client: Client) -> None:
    client.clock.now = START + 100.7
    assert client.methods.mine().header.timestamp == START + 100


def test_blocks_of_one_second_get_increasing_stamps(client: Client) -> None:
    client.clock.now = START + 10.0
    assert [client.methods.mine().header.timestamp - START for _ in range(3)] == [10, 11, 12]


def test_interval_mining_waits_until_the_clock_passes_the_head(client: Client) -> None:
    client.clock.now = START + 1.0
    client.methods.mine()
    client.methods.mine()
    assert client.methods.mine_if_due() is None
    client.clock.now = START + 3.0
    mined = client.methods.mine_if_due()
    assert mined is not None
    assert mined.header.timestamp == START + 3


def test_gas_limit_does_not_decay_when_the_chain_is_idle(client: Client) -> None:
    for _ in range(30):
        client.call("evm_mine")
    assert int(client.call("eth_getBlockByNumber", "latest", False)["gasLimit"], 16) == GAS_LIMIT


HEADER_FIELDS = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce"),
    *("baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot"),
    "requestsHash",
)
QUANTITIES = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas"} | {
    "blobGasUsed",
    "excessBlobGas",
}


def header_rlp(block: dict[str, str]) -> bytes:
    """Rebuild the raw header from a block's JSON, as a verifier does."""
    return rlp.encode(
        [
            int(block[name], 16) if name in QUANTITIES else bytes.fromhex(block[name][2:])
            for name in HEADER_FIELDS
        ]
    )


@pytest.mark.parametrize("number", ["earliest", "latest"])
def test_block_hash_is_the_hash_of_the_header_in_its_json(client: Client, number: str) -> None:
    client.create(CREATES_STORES)
    block = client.call("eth_getBlockByNumber", number, False)
    assert "0x" + keccak256(header_rlp(block)).hex() == block["hash"]
    assert client.call("debug_getRawHeader", number) == "0x" + header_rlp(block).hex()


def test_block_is_found_by_hash(client: Client) -> None:
    block = client.call("eth_getBlockByNumber", "latest", False)
    assert client.call("eth_getBlockByHash", block["hash"], False) == block


def test_unknown_block_is_null_where_a_block_is_asked(client: Client) -> None:
    assert client.call("eth_getBlockByNumber", "0x99", False) is None
    assert client.call("eth_getBlockByHash", "0x" + "ab" * 32, False) is None


def test_unknown_block_is_an_error_where_state_is_asked(client: Client) -> None:
    assert client.refusal("eth_getBalance", ALICE.address, "0x99") == -32001
    assert client.refusal("eth_getProof", ALICE.address, [], {"blockHash": "0x" + "ab" * 32}) == -32001


# ---- transactions ----


def test_transfer_moves_money_in_the_next_block(client: Client) -> None:
    sent = client.call("eth_sendRawTransaction", client.signed(nonce=0, value=5))
    assert client.call("eth_getTransactionReceipt", sent) is None
    client.call("evm_mine")
    receipt = client.call("eth_getTransactionReceipt", sent)
    assert (receipt["status"], receipt["blockNumber"], receipt["gasUsed"]) == ("0x1", "0x1", hex(21_000))
    assert int(client.call("eth_getBalance", BOB.address, "latest"), 16) == BALANCE + 5
    assert int(client.call("eth_getBalance", BOB.address, "0x0"), 16) == BALANCE


def test_transactions_of_one_sender_share_a_block_in_any_order(client: Client) -> None:
    sent = [client.call("eth_sendRawTransaction", client.signed(nonce=nonce)) for nonce in (2, 0, 1)]
    client.call("evm_mine")
    receipts = [client.call("eth_getTransactionReceipt", one) for one in sent]
    assert [(one["blockNumber"], one["transactionIndex"]) for one in receipts] == [
        ("0x1", "0x2"),
        ("0x1", "0x0"),
        ("0x1", "0x1"),
    ]


def test_transaction_behind_a_nonce_gap_waits(client: Client) -> None:
    sent = client.call("eth_sendRawTransaction", client.signed(nonce=1))
    client.call("evm_mine")
    assert client.call("eth_getTransactionReceipt", sent) is None
    client.call("eth_sendRawTransaction", client.signed(nonce=0))
    client.call("evm_mine")
    assert client.call("eth_getTransactionReceipt", sent)["blockNumber"] == "0x2"


def test_transaction_that_no_longer_fits_waits_for_the_next_block(client: Client) -> None:
    sent = [
        client.call("eth_sendRawTransaction", client.signed(nonce=nonce, gas=GAS_LIMIT)) for nonce in (0, 1)
    ]
    client.call("evm_mine")
    client.call("evm_mine")
    blocks = [client.call("eth_getTransactionReceipt", one)["blockNumber"] for one in sent]
    assert blocks == ["0x1", "0x2"]


def test_pending_nonce_counts_the_queue(client: Client) -> None:
    for nonce in (0, 1, 3):
        client.call("eth_sendRawTransaction", client.signed(nonce=nonce))
    counts = [client.call("eth_getTransactionCount", ALICE.address, tag) for tag in ("latest", "pending")]
    assert counts == ["0x0", "0x2"]


def test_transaction_for_another_chain_is_refused(client: Client) -> None:
    assert client.refusal("eth_sendRawTransaction", client.signed(nonce=0, chainId=1)) == -32003


def test_old_nonce_is_refused(client: Client) -> None:
    client.call("eth_sendRawTransaction", client.signed(nonce=0))
    client.call("evm_mine")
    refused = client.ask("eth_sendRawTransaction", client.signed(nonce=0, value=2))["error"]
    assert refused == {"code": -32003, "message": "nonce too low"}


def test_transaction_twice_is_refused(client: Client) -> None:
    client.call("eth_sendRawTransaction", client.signed(nonce=0))
    assert client.ask("eth_sendRawTransaction", client.signed(nonce=0))["error"]["message"] == "already known"


def test_transaction_without_the_money_is_refused(client: Client) -> None:
    poor = client.signed(nonce=0, value=BALANCE)
    assert "insufficient funds" in client.ask("eth_sendRawTransaction", poor)["error"]["message"]


def test_transaction_above_the_gas_limit_is_refused(client: Client) -> None:
    assert client.refusal("eth_sendRawTransaction", client.signed(nonce=0, gas=GAS_LIMIT + 1)) == -32003


@pytest.mark.parametrize("raw", ["0x", "0x00", "0xc0", "0x02", "0x02c0", "0xff", "0x02f8"])
def test_bytes_that_are_no_transaction_are_refused(client: Client, raw: str) -> None:
    assert client.refusal("eth_sendRawTransaction", raw) == -32003


def test_reverting_creation_is_mined_as_failed(client: Client) -> None:
    sent = client.call(
        "eth_sendRawTransaction", client.signed(nonce=0, to="", value=0, gas=100_000, data="0x5f5ffd")
    )
    client.call("evm_mine")
    assert client.call("eth_getTransactionReceipt", sent)["status"] == "0x0"


# ---- calls ----


def test_call_returns_output_and_changes_nothing(client: Client) -> None:
    address = client.create(CREATES_STORES)
    answer = client.call("eth_call", {"to": address, "data": "0x" + "2a".rjust(64, "0")}, "latest")
    assert int(answer, 16) == 42
    assert int(client.call("eth_getStorageAt", address, "0x1", "latest"), 16) == 0


def test_revert_is_an_error_with_its_data(client: Client) -> None:
    address = client.create(REVERTS)
    error = client.ask("eth_call", {"to": address}, "latest")["error"]
    assert error == {"code": 3, "message": "execution reverted", "data": "0x"}


def test_estimate_of_a_revert_is_the_same_error(client: Client) -> None:
    assert client.refusal("eth_estimateGas", {"to": client.create(REVERTS)}) == 3


def test_estimate_covers_what_the_call_uses(client: Client) -> None:
    address = client.create(CREATES_STORES)
    data = "0x" + "2a".rjust(64, "0")
    gas = int(client.call("eth_estimateGas", {"from": ALICE.address, "to": address, "data": data}), 16)
    raw = client.signed(nonce=1, to=address, value=0, gas=gas, data=data)
    sent = client.call("eth_sendRawTransaction", raw)
    client.call("evm_mine")
    assert client.call("eth_getTransactionReceipt", sent)["status"] == "0x1"


def test_call_without_enough_gas_to_begin_is_refused(client: Client) -> None:
    assert client.refusal("eth_call", {"to": BOB.address, "gas": "0x1"}, "latest") == -32003


# ---- logs ----


def store(client: Client, address: str, *, nonce: int, value: int) -> None:
    data = f"0x{value:064x}"
    client.call(
        "eth_sendRawTransaction", client.signed(nonce=nonce, to=address, value=0, gas=100_000, data=data)
    )


@pytest.fixture
def logged(client: Client) -> tuple[Client, str]:
    """A contract that logged 1 and 2 in block 2 and 3 in block 3."""
    address = client.create(CREATES_STORES)
    store(client, address, nonce=1, value=1)
    store(client, address, nonce=2, value=2)
    client.call("evm_mine")
    store(client, address, nonce=3, value=3)
    client.call("evm_mine")
    return client, address


def values(logs: list[dict[str, str]]) -> list[int]:
    return [int(one["data"], 16) for one in logs]


SEVEN = "0x" + "07".rjust(64, "0")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"fromBlock": "earliest"}, [1, 2, 3]),
        ({"fromBlock": "0x0", "toBlock": "0x2"}, [1, 2]),
        ({"fromBlock": "0x0", "toBlock": "0x99"}, [1, 2, 3]),
        ({}, [3]),
        ({"fromBlock": "0x0", "topics": [SEVEN]}, [1, 2, 3]),
        ({"fromBlock": "0x0", "topics": [None]}, [1, 2, 3]),
        ({"fromBlock": "0x0", "topics": [["0x" + "00" * 32, SEVEN]]}, [1, 2, 3]),
        ({"fromBlock": "0x0", "topics": ["0x" + "00" * 32]}, []),
        ({"fromBlock": "0x0", "topics": [SEVEN, None]}, []),
        ({"fromBlock": "0x0", "address": ALICE.address}, []),
    ],
)
def test_logs_are_filtered(logged: tuple[Client, str], wanted: dict[str, object], found: list[int]) -> None:
    assert values(logged[0].call("eth_getLogs", wanted)) == found


def test_logs_of_one_block_are_found_by_its_hash(logged: tuple[Client, str]) -> None:
    client, address = logged
    block = client.call("eth_getBlockByNumber", "0x2", False)
    logs = client.call("eth_getLogs", {"blockHash": block["hash"], "address": [address]})
    assert values(logs) == [1, 2]
    assert [one["logIndex"] for one in logs] == ["0x0", "0x1"]
    assert {one["blockHash"] for one in logs} == {block["hash"]}


# ---- proofs ----


def proven(root: str, key: bytes, nodes: list[str]) -> bytes:
    """Walk a proof with the trie library; a missing node raises."""
    decoded = [rlp.decode(bytes.fromhex(node[2:])) for node in nodes]
    return bytes(HexaryTrie.get_from_proof(bytes.fromhex(root[2:]), key, decoded))


def account_rlp(answer: dict[str, Any]) -> bytes:
    return rlp.encode(
        [
            int(answer["nonce"], 16),
            int(answer["balance"], 16),
            bytes.fromhex(answer["storageHash"][2:]),
            bytes.fromhex(answer["codeHash"][2:]),
        ]
    )


def test_account_proof_leads_to_the_state_root(logged: tuple[Client, str]) -> None:
    client, address = logged
    block = client.call("eth_getBlockByNumber", "latest", False)
    answer = client.call("eth_getProof", address, [], "latest")
    key = keccak256(bytes.fromhex(address[2:]))
    assert proven(block["stateRoot"], key, answer["accountProof"]) == account_rlp(answer)
    code = bytes.fromhex(client.call("eth_getCode", address, "latest")[2:])
    assert answer["codeHash"] == "0x" + keccak256(code).hex()


@pytest.mark.parametrize(("number", "value"), [("0x2", 2), ("0x3", 3)])
def test_storage_proof_is_of_the_block_asked_for(logged: tuple[Client, str], number: str, value: int) -> None:
    client, address = logged
    block_hash = client.call("eth_getBlockByNumber", number, False)["hash"]
    answer = client.call("eth_getProof", address, ["0x1"], {"blockHash": block_hash})
    cell = answer["storageProof"][0]
    found = proven(answer["storageHash"], keccak256((1).to_bytes(32, "big")), cell["proof"])
    assert (rlp.encode(value), hex(value)) == (found, cell["value"])


def test_absent_slot_and_account_are_proven_absent(logged: tuple[Client, str]) -> None:
    client, address = logged
    block = client.call("eth_getBlockByNumber", "latest", False)
    cell = client.call("eth_getProof", address, ["0x9"], "latest")
    slot = keccak256((9).to_bytes(32, "big"))
    assert proven(cell["storageHash"], slot, cell["storageProof"][0]["proof"]) == b""
    nobody = client.call("eth_getProof", "0x" + "77" * 20, ["0x0"], "latest")
    assert proven(block["stateRoot"], keccak256(b"\x77" * 20), nobody["accountProof"]) == b""
    assert (nobody["nonce"], nobody["balance"], nobody["storageProof"][0]["proof"]) == ("0x0", "0x0", [])


def test_proof_nodes_are_those_that_have_a_hash(logged: tuple[Client, str]) -> None:
    client, address = logged
    answer = client.call("eth_getProof", address, [], "latest")
    assert all(len(node) >= 66 for node in answer["accountProof"])


def test_proof_of_too_many_slots_is_refused(client: Client) -> None:
    slots = [hex(slot) for slot in range(MAX_PROOF_SLOTS + 1)]
    assert client.refusal("eth_getProof", ALICE.address, slots, "latest") == -32602


# ---- the protocol ----


def test_batch_is_answered_in_order(client: Client) -> None:
    names = ["eth_chainId", "nothing", "eth_blockNumber"]
    batch = [{"jsonrpc": "2.0", "id": index, "method": name} for index, name in enumerate(names)]
    answers = client.post(batch)
    assert [one["id"] for one in answers] == [0, 1, 2]
    assert ["result" in one for one in answers] == [True, False, True]


def test_notification_gets_no_answer(client: Client) -> None:
    assert client.post({"jsonrpc": "2.0", "method": "evm_mine"}) is None
    assert client.call("eth_blockNumber") == "0x1"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", -32700),
        (b"[]", -32600),
        (b"7", -32600),
        (b'{"id":1}', -32600),
        (b'{"id":1,"method":"eth_sendTransaction","params":[]}', -32601),
        (b'{"id":1,"method":"eth_call","params":{}}', -32602),
        (b'{"id":1,"method":"eth_call"}', -32602),
        (b'{"id":1,"method":"eth_chainId","params":[1]}', -32602),
        (b'{"id":1,"method":"eth_getBalance","params":["0x12","latest"]}', -32602),
        (b'{"id":1,"method":"eth_getBalance","params":["zz","latest"]}', -32602),
        (b'{"id":1,"method":"eth_getBlockByNumber","params":["newest",false]}', -32602),
        (b'{"id":1,"method":"eth_getBlockByNumber","params":["latest",true]}', -32602),
        (b'{"id":1,"method":"eth_getBlockByNumber","params":["0x-5",false]}', -32602),
        (b'{"id":1,"method":"eth_getBlockByHash","params":[["x"],false]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"topics":[7]}]}', -32602),
        (b'{"id":1,"method":"eth_getLogs","params":[{"topics":7}]}', -32602),
        (b'{"id":1,"method":"eth_getProof","params":["0x' + b"00" * 20 + b'",7]}', -32602),
        (b'{"id":1,"method":"eth_call","params":[{"value":"0x' + b"f" * 65 + b'"}]}', -32602),
    ],
)
def test_bad_request_is_answered_with_its_number(client: Client, body: bytes, code: int) -> None:
    assert client.post(body)["error"]["code"] == code


def test_batch_above_the_limit_is_refused(client: Client) -> None:
    batch = [{"id": 1, "method": "eth_chainId"}] * (MAX_BATCH + 1)
    assert client.post(batch)["error"]["code"] == -32600


def test_fee_answers_cover_the_next_block(client: Client) -> None:
    client.call("evm_mine")
    history = client.call("eth_feeHistory", "0x5", "latest", [50.0])
    assert (history["oldestBlock"], len(history["baseFeePerGas"]), len(history["reward"])) == ("0x0", 3, 2)
    price, tip = (int(client.call(name), 16) for name in ("eth_gasPrice", "eth_maxPriorityFeePerGas"))
    assert price >= tip > 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=12)
    | st.sampled_from(["latest", "0x1", ALICE.address]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SHARED = Client()


@settings(max_examples=150, deadline=None)
@given(method=st.sampled_from(sorted(SHARED.methods._table)), params=st.lists(JSON, max_size=3))
def test_any_parameters_get_a_result_or_an_error(method: str, params: list[object]) -> None:
    answer = SHARED.ask(method, *params)
    assert ("result" in answer) != ("error" in answer)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_get_an_answer(body: bytes) -> None:
    SHARED.post(body)
