"""Block headers: the hash that names a block, and the three facts that a proof needs from one.

A header is shipped as raw RLP. Items 3 (state root), 8 (number) and 11 (timestamp) have kept their place in
every fork; items that later forks append are tolerated (17 in shanghai, 20 in cancun, 21 since prague).
"""

from collections.abc import Mapping

import msgspec

from shared.chain import rlp
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.keccak import keccak256

# 21 fields come to about 650 bytes; the extra data of rollups and proof-of-authority chains makes the rest.
MAX_HEADER_BYTES = 2048
# 15 fields in frontier, 21 in osaka, and room for the forks of some years.
MIN_FIELDS, MAX_FIELDS = 15, 32

_STATE_ROOT, _NUMBER, _TIMESTAMP = 3, 8, 11
_INTEGER = "integer"
_FIELDS: tuple[tuple[str, int | str | None], ...] = (
    ("parentHash", 32),
    ("sha3Uncles", 32),
    ("miner", 20),
    ("stateRoot", 32),
    ("transactionsRoot", 32),
    ("receiptsRoot", 32),
    ("logsBloom", 256),
    ("difficulty", _INTEGER),
    ("number", _INTEGER),
    ("gasLimit", _INTEGER),
    ("gasUsed", _INTEGER),
    ("timestamp", _INTEGER),
    ("extraData", None),
    ("mixHash", 32),
    ("nonce", 8),
    ("baseFeePerGas", _INTEGER),
    ("withdrawalsRoot", 32),
    ("blobGasUsed", _INTEGER),
    ("excessBlobGas", _INTEGER),
    ("parentBeaconBlockRoot", 32),
    ("requestsHash", 32),
)
# prague and osaka, cancun, shanghai, paris (london), before london
_FORK_LENGTHS = (21, 20, 17, 16, 15)


class BlockRef(msgspec.Struct, frozen=True):
    """A block that somebody vouches for: its number and its 32-byte hash."""

    number: int
    hash: bytes


class Header(msgspec.Struct, frozen=True):
    """What a proof needs from a block: `hash` and `state_root` of 32 bytes, `timestamp` in unix seconds."""

    hash: bytes
    state_root: bytes
    number: int
    timestamp: int


def parse_header(raw: bytes) -> Header:
    """Read a header and compute its hash; raises `InvalidEvidence`: `proof.header.invalid`, `proof.rlp.*`."""
    if len(raw) > MAX_HEADER_BYTES:
        raise InvalidEvidence(
            "proof.header.invalid", f"the header has {len(raw)} bytes, expected at most {MAX_HEADER_BYTES}"
        )
    items = rlp.decode_list(raw)
    if not MIN_FIELDS <= len(items) <= MAX_FIELDS:
        raise InvalidEvidence(
            "proof.header.invalid",
            f"the header has {len(items)} fields, expected between {MIN_FIELDS} and {MAX_FIELDS}",
        )
    return Header(
        hash=keccak256(raw),
        state_root=rlp.to_bytes(items[_STATE_ROOT], length=32, what="the state root"),
        number=rlp.to_int(items[_NUMBER], max_bytes=8, what="the block number"),
        timestamp=rlp.to_int(items[_TIMESTAMP], max_bytes=8, what="the block timestamp"),
    )


def encode_header(block: Mapping[str, object], expected_hash: bytes) -> bytes:
    """Rebuild the header RLP of a block in JSON-RPC form, so that it hashes to `expected_hash` (32 bytes).

    Which fields a fork has is found by trying. Raises `ProtocolError("rpc.block.malformed")` where a field is
    malformed, `ProtocolError("rpc.block.hash")` where no known set of fields gives the hash.
    """
    items: list[bytes] = []
    for name, kind in _FIELDS:
        value = block.get(name)
        if value is None:
            break
        items.append(_field(name, kind, value))
    for count in _FORK_LENGTHS:
        if len(items) >= count:
            raw = rlp.encode(items[:count])
            if keccak256(raw) == expected_hash:
                return raw
    raise ProtocolError(
        "rpc.block.hash",
        f"the block's {len(items)} known header fields do not hash to 0x{expected_hash.hex()}",
    )


def _field(name: str, kind: int | str | None, value: object) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) > 2 * MAX_HEADER_BYTES:
        raise ProtocolError("rpc.block.malformed", f"block field {name} is not a 0x string")
    digits = value[2:]
    if kind == _INTEGER and len(digits) % 2:
        digits = "0" + digits
    try:
        raw = decode_hex(digits, what=f"block field {name}", prefix=False)
    except ProtocolError as error:
        raise ProtocolError("rpc.block.malformed", error.message) from error
    if kind == _INTEGER:
        return raw.lstrip(b"\0")
    if kind is not None and len(raw) != kind:
        raise ProtocolError(
            "rpc.block.malformed", f"block field {name} has {len(raw)} bytes, expected {kind}"
        )
    return raw
