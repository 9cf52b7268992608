"""The JSON-RPC methods that the demo, the tests and web3 call, and their JSON. Nothing else is offered."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import rlp
from eth.constants import POST_MERGE_NONCE

from cli.devchain.accounts import CHAIN_ID
from cli.devchain.evm import AccountProof, Block, Call, Evm, Log, Mined, Reverted
from shared.errors import DstackError, ProtocolError
from shared.hex import decode_hex

CLIENT_VERSION = "dstack-devchain/py-evm"
PRIORITY_FEE = 10**9
# A caller that asks for more in one go is broken; the chain shares one thread with everybody.
MAX_BATCH = 200
MAX_PROOF_SLOTS = 256

_ERROR_NUMBERS = {
    "devchain.json.invalid": -32700,
    "devchain.request.invalid": -32600,
    "devchain.method.unknown": -32601,
    "devchain.params.invalid": -32602,
    "hex.invalid": -32602,
    "hex.length": -32602,
    "devchain.block.unknown": -32001,
    "devchain.transaction.refused": -32003,
    "devchain.call.reverted": 3,
}

Json = Any


class Methods:
    """Answers JSON-RPC requests on one chain. `mine_on_submit` mines a block for each transaction."""

    def __init__(
        self, evm: Evm, *, mine_on_submit: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._evm = evm
        self._mine_on_submit = mine_on_submit
        self._clock = clock
        self._table: dict[str, Callable[..., Json]] = {
            "eth_chainId": lambda: hex(CHAIN_ID),
            "net_version": lambda: str(CHAIN_ID),
            "web3_clientVersion": lambda: CLIENT_VERSION,
            "eth_blockNumber": lambda: hex(evm.head.number),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getBalance": self._balance,
            "eth_gasPrice": lambda: hex(evm.head.header.base_fee_per_gas + PRIORITY_FEE),
            "eth_maxPriorityFeePerGas": lambda: hex(PRIORITY_FEE),
            "eth_feeHistory": self._fee_history,
            "eth_estimateGas": self._estimate,
            "eth_sendRawTransaction": self._send,
            "eth_getTransactionReceipt": self._receipt,
            "eth_call": self._call,
            "eth_getCode": self._code,
            "eth_getStorageAt": self._storage_at,
            "eth_getProof": self._proof,
            "eth_getLogs": self._logs,
            "debug_getRawHeader": self._raw_header,
            "evm_mine": self._mine,
        }

    def answer(self, body: bytes) -> bytes | None:
        """Answer one HTTP body, a request or a batch of them; None when it held notifications alone."""
        try:
            request = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            return msgspec.json.encode(_failure(None, ProtocolError("devchain.json.invalid", str(error))))
        if not isinstance(request, list):
            answer = self._answer_one(request)
            return None if answer is None else msgspec.json.encode(answer)
        if not 0 < len(request) <= MAX_BATCH:
            sentence = f"a batch of {len(request)}, expected 1 to {MAX_BATCH} requests"
            return msgspec.json.encode(_failure(None, ProtocolError("devchain.request.invalid", sentence)))
        answers = [answer for one in request if (answer := self._answer_one(one)) is not None]
        return msgspec.json.encode(answers) if answers else None

    def mine(self) -> Block:
        """Mine one block stamped with the wall clock."""
        return self._evm.mine(now=int(self._clock()))

    def mine_if_due(self) -> Block | None:
        """Mine unless the head is already stamped with this second or a later one."""
        return self.mine() if self._evm.head.header.timestamp < int(self._clock()) else None

    def _answer_one(self, request: Json) -> Json:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _failure(None, ProtocolError("devchain.request.invalid", "not a JSON-RPC request object"))
        identity = request.get("id")
        parameters = request.get("params", [])
        try:
            result = self._dispatch(request["method"], parameters)
        except DstackError as error:
            answer = _failure(identity, error)
        else:
            answer = {"jsonrpc": "2.0", "id": identity, "result": result}
        return answer if "id" in request else None

    def _dispatch(self, name: str, parameters: Json) -> Json:
        method = self._table.get(name)
        if method is None:
            raise ProtocolError("devchain.method.unknown", f"the method {name} does not exist on this chain")
        if not isinstance(parameters, list):
            raise _bad("params is not a list")
        try:
            return method(*parameters)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise _bad(f"{name}: {error}") from error

    # ---- which block ----

    def _at(self, reference: Json) -> Block:
        """Resolve a number, a tag or an EIP-1898 object."""
        if isinstance(reference, dict):
            if "blockHash" in reference:
                wanted = decode_hex(reference["blockHash"], what="blockHash", length=32)
                block = self._evm.block_by_hash(wanted)
            else:
                return self._at(reference["blockNumber"])
        else:
            block = self._by_reference(reference)
        if block is None:
            raise ProtocolError("devchain.block.unknown", f"unknown block {reference}")
        return block

    def _by_reference(self, reference: Json) -> Block | None:
        match reference:
            case "latest" | "pending" | None:
                return self._evm.head
            case "finalized":
                return self._evm.finalized
            case "safe":
                return self._evm.block(max(0, self._evm.head.number - 1))
            case "earliest":
                return self._evm.block(0)
            case _:
                return self._evm.block(_quantity(reference))

    def _block_by_number(self, reference: Json, full: bool = False) -> Json:  # noqa: FBT001, FBT002 - positional
        return _block_json(self._by_reference(reference), full=full)

    def _block_by_hash(self, block_hash: str, full: bool = False) -> Json:  # noqa: FBT001, FBT002 - positional
        found = self._evm.block_by_hash(decode_hex(block_hash, what="block hash", length=32))
        return _block_json(found, full=full)

    def _raw_header(self, reference: Json) -> str:
        return _hex(rlp.encode(self._at(reference).header))

    # ---- accounts ----

    def _transaction_count(self, address: str, reference: Json = "latest") -> str:
        account = _address(address)
        if reference == "pending":
            return hex(self._evm.pending_nonce(account))
        return hex(self._evm.prove(account, (), self._at(reference)).nonce)

    def _balance(self, address: str, reference: Json = "latest") -> str:
        return hex(self._evm.prove(_address(address), (), self._at(reference)).balance)

    def _code(self, address: str, reference: Json = "latest") -> str:
        return _hex(self._evm.code(_address(address), self._at(reference)))

    def _storage_at(self, address: str, slot: str, reference: Json = "latest") -> str:
        proof = self._evm.prove(_address(address), (_quantity(slot),), self._at(reference))
        return _word(proof.storage[0][1])

    def _proof(self, address: str, slots: list[str], reference: Json = "latest") -> Json:
        if len(slots) > MAX_PROOF_SLOTS:
            raise _bad(f"{len(slots)} slots, at most {MAX_PROOF_SLOTS} are proven at once")
        account = _address(address)
        numbers = [_quantity(slot) for slot in slots]
        return _proof_json(account, self._evm.prove(account, numbers, self._at(reference)))

    # ---- transactions ----

    def _send(self, raw: str) -> str:
        transaction_hash = self._evm.submit(decode_hex(raw, what="transaction"))
        if self._mine_on_submit:
            self.mine()
        return _hex(transaction_hash)

    def _mine(self, *_: Json) -> str:
        self.mine()
        return "0x0"

    def _receipt(self, transaction_hash: str) -> Json:
        found = self._evm.mined(decode_hex(transaction_hash, what="transaction hash", length=32))
        return None if found is None else _receipt_json(*found)

    def _call(self, call: dict[str, str], reference: Json = "latest") -> str:
        return _hex(self._evm.call(_call_of(call), self._at(reference)))

    def _estimate(self, call: dict[str, str], reference: Json = "latest") -> str:
        return hex(self._evm.estimate(_call_of(call), self._at(reference)))

    def _fee_history(self, count: Json, newest: Json, percentiles: list[float] | None = None) -> Json:
        last = self._at(newest).number
        first = max(0, last + 1 - min(_quantity(count), 1024))
        blocks = [self._at(hex(number)) for number in range(first, last + 1)]
        fees = [block.header.base_fee_per_gas for block in blocks]
        answer = {
            "oldestBlock": hex(first),
            "baseFeePerGas": [hex(fee) for fee in [*fees, fees[-1]]],
            "gasUsedRatio": [block.header.gas_used / block.header.gas_limit for block in blocks],
        }
        if percentiles:
            answer["reward"] = [[hex(PRIORITY_FEE)] * len(percentiles) for _ in blocks]
        return answer

    def _logs(self, wanted: dict[str, Json]) -> Json:
        if "blockHash" in wanted:
            blocks = [self._at({"blockHash": wanted["blockHash"]})]
        else:
            first = self._at(wanted.get("fromBlock", "latest")).number
            last = min(self._evm.head.number, self._last_number(wanted.get("toBlock", "latest")))
            blocks = [self._at(hex(number)) for number in range(first, last + 1)]
        addresses = wanted.get("address") or []
        addresses = {_address(one) for one in ([addresses] if isinstance(addresses, str) else addresses)}
        topics = [
            None if one is None else {_topic(option) for option in ([one] if isinstance(one, str) else one)}
            for one in wanted.get("topics") or []
        ]
        return [
            _log_json(log, block)
            for block in blocks
            for mined in block.mined
            for log in mined.logs
            if (not addresses or log.address in addresses) and _matches(log.topics, topics)
        ]

    def _last_number(self, reference: Json) -> int:
        tag = isinstance(reference, str) and not reference.startswith("0x")
        return self._at(reference).number if tag else _quantity(reference)


def _failure(identity: Json, error: DstackError) -> Json:
    detail: dict[str, Json] = {"code": _ERROR_NUMBERS.get(error.code, -32000), "message": error.message}
    if isinstance(error, Reverted):
        detail["data"] = _hex(error.output)
    return {"jsonrpc": "2.0", "id": identity, "error": detail}


def _bad(sentence: str) -> ProtocolError:
    return ProtocolError("devchain.params.invalid", sentence)


# ---- reading parameters ----


def _quantity(text: Json) -> int:
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 66:
        raise _bad(f"{text!r} is not a 0x quantity")
    return int(text, 16) if len(text) > 2 else 0


def _address(text: str) -> bytes:
    return decode_hex(text, what="address", length=20)


def _topic(text: str) -> bytes:
    return decode_hex(text, what="topic", length=32)


def _call_of(call: dict[str, str]) -> Call:
    data = call.get("input") or call.get("data") or "0x"
    to = call.get("to")
    return Call(
        sender=_address(call.get("from") or "0x" + "00" * 20),
        to=_address(to) if to else None,
        data=decode_hex(data, what="data"),
        value=_quantity(call.get("value") or "0x0"),
        gas=_quantity(call["gas"]) if call.get("gas") else None,
    )


def _matches(topics: tuple[bytes, ...], wanted: list[set[bytes] | None]) -> bool:
    if len(wanted) > len(topics):
        return False
    return all(options is None or topics[index] in options for index, options in enumerate(wanted))


# ---- writing answers ----


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _word(number: int) -> str:
    return f"0x{number:064x}"


def _bloom(number: int) -> str:
    return f"0x{number:0512x}"


def _block_json(block: Block | None, *, full: bool) -> Json:
    """Write every header field, so that a reader can rebuild the RLP that hashes to `hash`."""
    if block is None:
        return None
    if full:
        raise _bad("this chain lists transaction hashes only, expected false")
    header = block.header
    return {
        "number": hex(header.block_number),
        "hash": _hex(header.hash),
        "parentHash": _hex(header.parent_hash),
        "sha3Uncles": _hex(header.uncles_hash),
        "miner": _hex(header.coinbase),
        "stateRoot": _hex(header.state_root),
        "transactionsRoot": _hex(header.transaction_root),
        "receiptsRoot": _hex(header.receipt_root),
        "logsBloom": _bloom(header.bloom),
        "difficulty": hex(header.difficulty),
        "gasLimit": hex(header.gas_limit),
        "gasUsed": hex(header.gas_used),
        "timestamp": hex(header.timestamp),
        "extraData": _hex(header.extra_data),
        "mixHash": _hex(header.mix_hash),
        "nonce": _hex(header.nonce or POST_MERGE_NONCE),
        "baseFeePerGas": hex(header.base_fee_per_gas),
        "withdrawalsRoot": _hex(header.withdrawals_root),
        "blobGasUsed": hex(header.blob_gas_used),
        "excessBlobGas": hex(header.excess_blob_gas),
        "parentBeaconBlockRoot": _hex(header.parent_beacon_block_root),
        "requestsHash": _hex(header.requests_hash),
        "size": hex(len(rlp.encode(header))),
        "uncles": [],
        "withdrawals": [],
        "transactions": [_hex(one.hash) for one in block.mined],
    }


def _receipt_json(block: Block, mined: Mined) -> Json:
    transaction = mined.transaction
    return {
        "transactionHash": _hex(mined.hash),
        "transactionIndex": hex(mined.index),
        "blockHash": _hex(block.header.hash),
        "blockNumber": hex(block.number),
        "from": _hex(transaction.sender),
        "to": _hex(transaction.to) if transaction.to else None,
        "contractAddress": None if mined.contract is None else _hex(mined.contract),
        "status": "0x1" if mined.succeeded else "0x0",
        "gasUsed": hex(mined.gas_used),
        "cumulativeGasUsed": hex(mined.cumulative_gas_used),
        "effectiveGasPrice": hex(mined.effective_gas_price),
        "logsBloom": _bloom(mined.bloom),
        "logs": [_log_json(log, block) for log in mined.logs],
        "type": hex(getattr(transaction, "type_id", None) or 0),
    }


def _log_json(log: Log, block: Block) -> Json:
    return {
        "address": _hex(log.address),
        "topics": [_hex(topic) for topic in log.topics],
        "data": _hex(log.data),
        "blockHash": _hex(block.header.hash),
        "blockNumber": hex(block.number),
        "transactionHash": _hex(log.transaction_hash),
        "transactionIndex": hex(log.transaction_index),
        "logIndex": hex(log.index),
        "removed": False,
    }


def _proof_json(address: bytes, proof: AccountProof) -> Json:
    return {
        "address": _hex(address),
        "nonce": hex(proof.nonce),
        "balance": hex(proof.balance),
        "storageHash": _hex(proof.storage_hash),
        "codeHash": _hex(proof.code_hash),
        "accountProof": [_hex(node) for node in proof.nodes],
        "storageProof": [
            {"key": _word(slot), "value": hex(value), "proof": [_hex(node) for node in nodes]}
            for slot, value, nodes in proof.storage
        ],
    }
