"""Headers: the recorded block hashes to its name, whatever later forks append."""

from typing import Any

import pytest

from shared.chain import rlp
from shared.chain.header import MAX_HEADER_BYTES, encode_header, parse_header
from shared.errors import InvalidEvidence, ProtocolError

LATER = ("requestsHash", "parentBeaconBlockRoot", "excessBlobGas", "blobGasUsed", "withdrawalsRoot")


def recorded(getproof: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    block = dict(getproof["block"])
    return block, bytes.fromhex(block["hash"][2:])


def test_recorded_header_hashes_to_its_block(getproof: dict[str, Any]) -> None:
    block, expected = recorded(getproof)
    header = parse_header(encode_header(block, expected))
    assert header.hash == expected
    assert header.state_root.hex() == block["stateRoot"][2:]
    assert (header.number, header.timestamp) == (int(block["number"], 16), int(block["timestamp"], 16))


@pytest.mark.parametrize(
    ("dropped", "count"), [(0, 21), (1, 20), (4, 17), (5, 16)], ids=["prague", "cancun", "shanghai", "paris"]
)
def test_rebuilds_the_header_of_every_fork(getproof: dict[str, Any], dropped: int, count: int) -> None:
    block, expected = recorded(getproof)
    items = rlp.decode_list(encode_header(block, expected))[:count]
    raw = rlp.encode(items)
    for name in LATER[:dropped]:
        del block[name]
    assert encode_header(block, parse_header(raw).hash) == raw


def test_tolerates_fields_that_later_forks_append(getproof: dict[str, Any]) -> None:
    block, expected = recorded(getproof)
    items = rlp.decode_list(encode_header(block, expected))
    header = parse_header(rlp.encode([*items, b"\x01" * 32, b"\x02", []]))
    assert header.number == 9


@pytest.mark.parametrize("count", [0, 14, 33])
def test_refuses_a_header_of_too_few_or_too_many_fields(count: int) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        parse_header(rlp.encode([b""] * count))
    assert caught.value.code == "proof.header.invalid"


def test_n03_refuses_an_oversize_header() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        parse_header(rlp.encode([bytes(MAX_HEADER_BYTES)]))
    assert caught.value.code == "proof.header.invalid"


def test_n01_refuses_trailing_bytes(getproof: dict[str, Any]) -> None:
    raw = encode_header(*recorded(getproof))
    with pytest.raises(InvalidEvidence) as caught:
        parse_header(raw + b"\0")
    assert caught.value.code == "proof.rlp.invalid"


@pytest.mark.parametrize(("item", "value"), [(3, b"\x01" * 31), (8, b"\x01" * 9), (11, b"\0\x01")])
def test_refuses_malformed_fields(getproof: dict[str, Any], item: int, value: bytes) -> None:
    items = rlp.decode_list(encode_header(*recorded(getproof)))
    items[item] = value
    with pytest.raises(InvalidEvidence) as caught:
        parse_header(rlp.encode(items))
    assert caught.value.code == "proof.rlp.invalid"


def test_refuses_a_block_whose_fields_do_not_hash_to_its_name(getproof: dict[str, Any]) -> None:
    block, expected = recorded(getproof)
    with pytest.raises(ProtocolError) as caught:
        encode_header({**block, "gasUsed": "0x1"}, expected)
    assert caught.value.code == "rpc.block.hash"


@pytest.mark.parametrize(
    "change",
    [{"miner": "0x00"}, {"number": 9}, {"stateRoot": "1767"}, {"extraData": "0x0"}, {"nonce": "0xzz"}],
)
def test_refuses_malformed_block_fields(getproof: dict[str, Any], change: dict[str, Any]) -> None:
    block, expected = recorded(getproof)
    with pytest.raises(ProtocolError) as caught:
        encode_header({**block, **change}, expected)
    assert caught.value.code == "rpc.block.malformed"
