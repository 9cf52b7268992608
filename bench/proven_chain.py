"""A large chain on which one KMS and one app are allowed: answers and proofs, made once and kept in memory.

The state has the size of a public chain's: the four accounts that a decision reads lie below seven full
branches, slots below two. The contracts' code is the compiled one. The two views share what did not change
between two blocks, the storage; of the accounts they share nothing, as the contracts' neighbours change with
each block.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from shared.boot_info import BootInfo
from shared.chain import rlp, slots, trie
from shared.chain.bundle import ProofBundle, Witness
from shared.chain.facts import read_views
from shared.chain.header import BlockRef, parse_header
from shared.chain.trie import secure_path
from shared.keccak import keccak256
from shared.net.response import Response

CHAIN_ID = 31337
KMS = b"\x11" * 20
GATEWAY = "aa" * 20

_KMS_CODE, _APP_CODE = b"\x21" * 20, b"\x22" * 20
_ACCOUNT_DEPTH, _STORAGE_DEPTH = 7, 2
_TRANSACTIONS = 200  # hashes that come with a block
_FIRST_BLOCK, _NOT_YET_FINAL = 7_000_000, 64
_ARTIFACTS = Path(__file__).parents[1] / "contracts" / "artifacts"
_YES = b"\x01"


class Served:
    """Stands where HTTP does, for the endpoints of a quorum and for the authorize function.

    Each answer with a proof is the last about its blocks, where others were prepared.
    """

    def __init__(self, own: BootInfo, app: BootInfo, now: int) -> None:
        self._own, self._app, self._now = own, app, now
        self._number = _FIRST_BLOCK
        self._answers: deque[_Answers] = deque()
        self.prepare(1)
        self.bundle = self._answers[0].bundle

    def prepare(self, count: int) -> None:
        """Make the blocks of so many requests."""
        for _ in range(count):
            self._number += 1
            self._answers.append(_Answers(_Chain(self._own, self._app, self._now, self._number)))
        for remembering in (trie._digest, trie._decoded):  # noqa: SLF001 - nodes that only we have seen
            remembering.cache_clear()

    def request(
        self,
        _method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **limits: object,
    ) -> Response:
        """Answer what the KMS asks."""
        del body, headers, limits
        current = self._answers[0]
        if "/bootAuth/all?" not in url:
            return Response(200, {}, current.blocks)
        if len(self._answers) > 1:
            self._answers.popleft()
        return Response(200, {}, current.decisions)


class _Answers:
    """What endpoints and function say of one pair of blocks, as bytes."""

    def __init__(self, chain: "_Chain") -> None:
        self.blocks = msgspec.json.encode(
            [
                {"jsonrpc": "2.0", "id": 1, "result": hex(CHAIN_ID)},
                {"jsonrpc": "2.0", "id": 2, "result": _block(chain.finalized)},
                {"jsonrpc": "2.0", "id": 3, "result": _block(chain.head)},
            ]
        )
        self.bundle = chain.bundle()
        answer = {"isAllowed": True, "gatewayAppId": GATEWAY, "reason": ""}
        self.decisions = msgspec.json.encode({"answers": [answer, answer], "proof": self.bundle.to_packed()})


class _Chain:
    """The two views."""

    def __init__(self, own: BootInfo, app: BootInfo, now: int, finalized: int) -> None:
        self.own, self.app = own, app
        self._nodes: dict[bytes, None] = {}
        kms_code, app_code = _code("DstackKms", _KMS_CODE), _code("DstackApp", _APP_CODE)
        proxy = _code("ERC1967Proxy", b"")
        self._codes = (kms_code, app_code)
        kms_storage = self._storage(
            {
                slots.ERC1967_IMPLEMENTATION: _KMS_CODE,
                slots.KMS_APP_IMPLEMENTATION: _APP_CODE,
                **_text(slots.KMS_GATEWAY_APP_ID, GATEWAY),
                **dict.fromkeys(
                    (
                        slots.kms_os_image(own.os_image_hash),
                        slots.kms_aggregated_mr(own.mr_aggregated),
                        slots.kms_device(own.device_id),
                        slots.kms_os_image(app.os_image_hash),
                        slots.kms_registered_app(app.app_id),
                    ),
                    _YES,
                ),
            }
        )
        app_storage = self._storage(
            {
                slots.ERC1967_IMPLEMENTATION: _APP_CODE,
                slots.app_compose_hash(app.compose_hash): _YES,
                slots.app_device(app.device_id): _YES,
            },
            absent=(slots.APP_REQUIRE_TCB, slots.APP_FLAGS),
        )
        empty = keccak256(rlp.encode(b""))
        accounts = {
            secure_path(address): rlp.encode([_YES, b"", storage, keccak256(code)])
            for address, storage, code in (
                (KMS, kms_storage, proxy),
                (_KMS_CODE, empty, kms_code),
                (app.app_id, app_storage, proxy),
                (_APP_CODE, empty, app_code),
            )
        }
        self._headers = [
            _header(self._trie(accounts, _ACCOUNT_DEPTH), number, now)
            for number in (finalized, finalized + _NOT_YET_FINAL)
        ]
        self.finalized, self.head = (
            BlockRef(header.number, header.hash) for header in map(parse_header, self._headers)
        )

    def bundle(self) -> ProofBundle:
        """Return what is needed for the two questions of a request, and nothing else."""
        witness = Witness(ProofBundle(tuple(self._headers), tuple(self._nodes), self._codes))
        for block in (self.finalized, self.head):
            root = witness.header(block.hash).state_root
            read_views(witness, root, kms_contract=KMS, questions=(("kms", self.own), ("app", self.app)))
        return witness.needed()

    def _storage(self, values: Mapping[bytes, bytes], absent: Iterable[bytes] = ()) -> bytes:
        """Return a storage root. What is absent has a neighbour, so that its proof is as deep."""
        leaves = {secure_path(slot): rlp.encode(value) for slot, value in values.items()}
        for slot in absent:
            path = secure_path(slot)
            leaves[path[:-1] + f"{int(path[-1], 16) ^ 1:x}"] = _YES
        return self._trie(leaves, _STORAGE_DEPTH)

    def _trie(self, leaves: Mapping[str, bytes], depth: int) -> bytes:
        return keccak256(self._node(leaves, 0, depth))

    def _node(self, leaves: Mapping[str, bytes], at: int, depth: int) -> bytes:
        """Make, keep and return a node; siblings above `depth` are other people's."""
        if at >= depth and len(leaves) == 1:
            [(path, value)] = leaves.items()
            raw = rlp.encode([_compact(path[at:]), value])
        else:
            children: list[rlp.Encodable] = []
            for digit in "0123456789abcdef":
                below = {path: value for path, value in leaves.items() if path[at] == digit}
                if below:
                    children.append(keccak256(self._node(below, at + 1, depth)))
                else:
                    children.append(os.urandom(32) if at < depth else b"")
            raw = rlp.encode([*children, b""])
        self._nodes[raw] = None
        return raw


def _compact(path: str) -> bytes:
    """Return the hex-prefix encoding of a leaf's part of its path."""
    return bytes.fromhex(f"3{path}" if len(path) % 2 else f"20{path}")


def _text(slot: bytes, text: str) -> dict[bytes, bytes]:
    """Return the slots of a string that does not fit into one."""
    word = slots.fixed(2 * len(text) + 1)
    raw = text.encode()
    parts = [raw[start : start + 32].ljust(32, b"\0") for start in range(0, len(raw), 32)]
    keys = slots.string_slots(word, slot)
    return {slot: word.lstrip(b"\0"), **dict(zip(keys, parts, strict=True))}


def _code(contract: str, address: bytes) -> bytes:
    """Return the runtime code of a contract that is deployed at `address`."""
    artifact = json.loads((_ARTIFACTS / f"{contract}.json").read_bytes())
    code = bytearray.fromhex(artifact["deployedBytecode"].removeprefix("0x"))
    for offset in artifact["immutableOffsets"]:
        code[offset : offset + 32] = address.rjust(32, b"\0")
    return bytes(code)


def _header(state_root: bytes, number: int, timestamp: int) -> bytes:
    word, integer = os.urandom(32), rlp.encode_int(30_000_000)
    before = (word, word, os.urandom(20), state_root, word, word, bytes(256), b"", rlp.encode_int(number))
    after = (word, word, bytes(8), integer, word, b"", b"", word, word)
    return rlp.encode((*before, integer, integer, rlp.encode_int(timestamp), *after))


def _block(block: BlockRef) -> dict[str, object]:
    """Return the part of a block's JSON that the KMS reads, among as much as comes with it."""
    transactions = [f"0x{os.urandom(32).hex()}" for _ in range(_TRANSACTIONS)]
    return {"number": hex(block.number), "hash": f"0x{block.hash.hex()}", "transactions": transactions}
