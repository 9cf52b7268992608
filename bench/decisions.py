"""A proven decision on a large chain: what the authorize function does for it, and the key server's check.

No network: the endpoint's answers are bytes that were made before. Their size is a public chain's, storage
proofs repeat their upper nodes as nodes send them, and no two requests are about the same blocks. The
references are what cannot be saved: decoding the same answer, and hashing every byte of the same proof once.

The budgets are 20 ms for the function and 10 ms for the check, on the machine of the bars (shared BENCH.md);
as ratios they hold on any.
"""

import json
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import msgspec

from bench.measure import Bar, Result, compare
from bench.proven_chain import CHAIN_ID, GATEWAY, KMS, Served
from functions.authorize.service import AuthorizeService
from functions.authorize.settings import Settings
from shared.boot_info import NITRO_ENCLAVE, BootInfo
from shared.chain import abi, rlp
from shared.chain.bundle import bundle_from_wire
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy, Subject, decide_all
from shared.chain.header import BlockRef, parse_header
from shared.chain.trie import secure_path
from shared.keccak import keccak256
from shared.net.json_rpc import JsonRpc
from shared.net.response import Response

BLOCKS = 24  # of one run: more than the memory of nodes holds
ROUNDS, COUNT = 15, BLOCKS
_TRANSACTIONS = 200
_HEADER = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce"),
    *("baseFeePerGas", "withdrawalsRoot", "blobGasUsed", "excessBlobGas", "parentBeaconBlockRoot"),
    "requestsHash",
)
_INTEGERS = frozenset(
    {
        *("difficulty", "number", "gasLimit", "gasUsed", "timestamp"),
        *("baseFeePerGas", "blobGasUsed", "excessBlobGas"),
    }
)


class _Case(msgspec.Struct, frozen=True):
    """One pair of blocks, and the proof of it as the function sends it."""

    finalized: BlockRef
    head: BlockRef
    answer: bytes


def function() -> Result:
    """Measure what `POST /bootAuth/all?proof=1` costs in Python, its two round trips answered at once."""
    now, app = int(time.time()), _boot_info()
    recorded = [_Recorded(case, app) for case in _cases(app, now)]
    http = _Replaying()
    settings = Settings(rpc_urls=("https://node.example",), kms_contract=KMS, chain_id=CHAIN_ID)
    service = AuthorizeService(settings, [JsonRpc(settings.rpc_urls[0], http)], now=lambda: now)  # type: ignore[arg-type]
    questions = [{"kind": kind, "bootInfo": app.to_wire()} for kind in ("kms", "app")]
    body = msgspec.json.encode({"questions": questions})
    headers = {"content-type": "application/json"}

    def ask(one: "_Recorded") -> None:
        http.play(one)
        answer = service.handle("POST", "/bootAuth/all", one.query, headers, body)
        if answer.encode().count(b'"isAllowed":true') != len(questions):
            raise RuntimeError(f"the bench was refused: {answer.body}")

    for one in recorded:  # the first time, answers are made
        ask(one)
    kept = cycle(recorded)
    reference = cycle(recorded)
    return compare(
        "authorize-decision",
        "a request's two proven decisions by the function, against decoding and hashing what it was sent",
        lambda: ask(next(kept)),
        lambda: _decode_and_hash(next(reference)),
        bar=Bar("at most", 3.5),
        rounds=ROUNDS,
        count=COUNT,
    )


def check() -> Result:
    """Measure what the key server does with the function's answer, from its bytes to the decision."""
    now, app = int(time.time()), _boot_info()
    cases = _cases(app, now)
    policy = ChainPolicy(chain_id=CHAIN_ID, kms_contract=KMS, codes=code_list())

    def decided(case: _Case) -> None:
        bundle = bundle_from_wire(msgspec.json.decode(case.answer)["proof"])
        decisions = decide_all(
            bundle,
            subjects=(Subject("kms", app), Subject("app", app)),
            chain=policy,
            finalized=case.finalized,
            head=case.head,
            now=now,
        )
        if not all(decision.is_allowed for decision in decisions):
            raise RuntimeError(f"the bench was refused: {decisions}")

    def hashed(case: _Case) -> None:
        for pieces in _unpacked(case.answer).values():
            for piece in pieces:
                keccak256(piece)

    ours, reference = cycle(cases), cycle(cases)
    return compare(
        "proof-check",
        "the key server's decision from a proof, against decoding it and hashing each byte once",
        lambda: decided(next(ours)),
        lambda: hashed(next(reference)),
        bar=Bar("at most", 2.0),
        rounds=ROUNDS,
        count=COUNT,
    )


def _unpacked(answer: bytes) -> dict[str, list[bytes]]:
    proof: dict[str, list[bytes]] = msgspec.msgpack.decode(b64decode(msgspec.json.decode(answer)["proof"]))
    return proof


def _boot_info() -> BootInfo:
    return BootInfo(
        tee_variant=NITRO_ENCLAVE,
        mr_aggregated=b"m" * 32,
        os_image_hash=b"o" * 32,
        mr_system=b"s" * 32,
        app_id=b"\x33" * 20,
        compose_hash=b"c" * 32,
        instance_id=b"",
        device_id=b"d" * 32,
        key_provider_info=b"",
        tcb_status="UpToDate",
        advisory_ids=(),
    )


def _cases(app: BootInfo, now: int) -> list[_Case]:
    served = Served(app, app, now)
    served.prepare(BLOCKS)
    cases = []
    for _ in range(BLOCKS):
        _, finalized, head = json.loads(served.request("POST", "/").body)
        refs = [
            BlockRef(int(one["result"]["number"], 16), bytes.fromhex(one["result"]["hash"][2:]))
            for one in (finalized, head)
        ]
        cases.append(_Case(*refs, served.request("POST", "/bootAuth/all?").body))
    return cases


def _decode_and_hash(recorded: "_Recorded") -> None:
    for raw in recorded.answers:
        msgspec.json.decode(raw)
    for piece in recorded.pieces:
        keccak256(piece)


class _Replaying:
    """An HTTP client that gives one recording's answers, in order."""

    def play(self, recorded: "_Recorded") -> None:
        self._recorded, self._next = recorded, 0

    def request(
        self, _method: str, _url: str, body: bytes, _headers: Mapping[str, str], **limits: object
    ) -> Response:
        del limits
        if self._next == len(self._recorded.answers):
            self._recorded.record(body)
        self._next += 1
        return Response(200, {}, self._recorded.answers[self._next - 1])


class _Recorded:
    """What a node says about one pair of blocks: each batch's answer is made once, and kept as bytes."""

    def __init__(self, case: _Case, app: BootInfo) -> None:
        proof = _unpacked(case.answer)
        self.pieces = [piece for pieces in proof.values() for piece in pieces]
        self.query = f"proof=1&packed=1&finalized=0x{case.finalized.hash.hex()}&head=0x{case.head.hash.hex()}"
        self.answers: list[bytes] = []
        self._headers = {keccak256(raw): raw for raw in proof["headers"]}
        self._nodes = {keccak256(raw): raw for raw in proof["nodes"]}
        self._codes = {keccak256(raw): raw for raw in proof["codes"]}
        self._app = app

    def record(self, body: bytes) -> None:
        """Answer a batch, and keep the answer."""
        answers: dict[str, Callable[[Any], object]] = {
            "eth_chainId": lambda _: hex(CHAIN_ID),
            "eth_getBlockByHash": lambda params: self._block(bytes.fromhex(params[0][2:])),
            "eth_call": lambda params: self._called(params[0]["data"]),
            "eth_getProof": lambda params: self._proof(*params),
            "eth_getCode": lambda params: self._code(*params),
        }
        self.answers.append(
            msgspec.json.encode(
                [
                    {"jsonrpc": "2.0", "id": call["id"], "result": answers[call["method"]](call["params"])}
                    for call in json.loads(body)
                ]
            )
        )

    def _block(self, digest: bytes) -> dict[str, object]:
        fields = {
            name: hex(int.from_bytes(_bytes(item), "big")) if name in _INTEGERS else f"0x{_bytes(item).hex()}"
            for name, item in zip(_HEADER, rlp.decode_list(self._headers[digest]), strict=True)
        }
        transactions = [f"0x{keccak256(digest, bytes([number])).hex()}" for number in range(_TRANSACTIONS)]
        return {**fields, "hash": f"0x{digest.hex()}", "transactions": transactions}

    def _called(self, data: str) -> str:
        if data.startswith(f"0x{abi.GATEWAY_APP_ID.hex()}"):
            text = GATEWAY.encode()
            words = (32).to_bytes(32, "big") + len(text).to_bytes(32, "big")
            return f"0x{(words + text.ljust(-len(text) % 32 + len(text), bytes(1))).hex()}"
        return f"0x{((1).to_bytes(32, 'big') + (64).to_bytes(32, 'big') + bytes(32)).hex()}"

    def _root(self, at: Mapping[str, str]) -> bytes:
        return parse_header(self._headers[bytes.fromhex(at["blockHash"][2:])]).state_root

    def _proof(self, address: str, keys: Sequence[str], at: Mapping[str, str]) -> dict[str, object]:
        nodes = self._path(self._root(at), secure_path(bytes.fromhex(address[2:])))
        storage = _bytes(self._account(nodes[-1])[2])
        slots = [self._path(storage, secure_path(bytes.fromhex(key[2:]))) for key in keys]
        return {
            "address": address,
            "accountProof": [f"0x{node.hex()}" for node in nodes],
            "storageProof": [
                {"key": key, "value": "0x1", "proof": [f"0x{node.hex()}" for node in proof]}
                for key, proof in zip(keys, slots, strict=True)
            ],
        }

    def _code(self, address: str, at: Mapping[str, str]) -> str:
        leaf = self._path(self._root(at), secure_path(bytes.fromhex(address[2:])))[-1]
        return f"0x{self._codes[_bytes(self._account(leaf)[3])].hex()}"

    @staticmethod
    def _account(leaf: bytes) -> list[rlp.Item]:
        return rlp.decode_list(_bytes(rlp.decode_list(leaf)[1]))

    def _path(self, root: bytes, path: str) -> list[bytes]:
        """Return the nodes from a root towards a key: there are branches and leaves alone."""
        nodes: list[bytes] = []
        while root in self._nodes:
            nodes.append(self._nodes[root])
            items = rlp.decode_list(nodes[-1])
            if len(items) != 17:
                break
            root = _bytes(items[int(path[len(nodes) - 1], 16)])
        return nodes


def _bytes(item: rlp.Item) -> bytes:
    if not isinstance(item, bytes):
        raise TypeError("a list where bytes belong")
    return item
