"""Storage slots and how Solidity packs what is in them."""

from typing import Any

import pytest

from shared.chain import slots
from shared.errors import InvalidEvidence
from shared.keccak import keccak256

SLOT = slots.KMS_GATEWAY_APP_ID


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("DstackKms.registeredApps[0x1111..]", slots.kms_registered_app(b"\x11" * 20)),
        ("DstackKms.kmsAllowedAggregatedMrs[0x55..]", slots.kms_aggregated_mr(b"\x55" * 32)),
        ("DstackKms.kmsAllowedDeviceIds[0x44..]", slots.kms_device(b"\x44" * 32)),
        ("DstackKms.allowedOsImages[0x77..]", slots.kms_os_image(b"\x77" * 32)),
        ("DstackApp.allowedComposeHashes[0x22..]", slots.app_compose_hash(b"\x22" * 32)),
        ("DstackApp.allowedDeviceIds[0x44..]", slots.app_device(b"\x44" * 32)),
    ],
)
def test_mapping_slots_equal_the_vectors(vectors: dict[str, Any], name: str, slot: bytes) -> None:
    assert f"0x{slot.hex()}" == vectors["mappingSlots"][name]


def test_implementation_slot_is_that_of_erc1967(vectors: dict[str, Any]) -> None:
    assert f"0x{slots.ERC1967_IMPLEMENTATION.hex()}" == vectors["erc1967_implementation_slot"]
    number = int.from_bytes(keccak256(b"eip1967.proxy.implementation"), "big") - 1
    assert slots.fixed(number) == slots.ERC1967_IMPLEMENTATION


def stored(text: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    if len(text) < 32:
        return text.ljust(31, b"\0") + bytes([2 * len(text)]), ()
    padded = text.ljust(-(-len(text) // 32) * 32, b"\0")
    parts = tuple(padded[at : at + 32] for at in range(0, len(padded), 32))
    return slots.fixed(2 * len(text) + 1), parts


@pytest.mark.parametrize("length", [0, 1, 30, 31, 32, 33, 40, 64, 65, 256])
def test_reads_strings_of_every_length(length: int) -> None:
    text = b"x" * length
    word, parts = stored(text)
    keys = slots.string_slots(word, SLOT)
    first = int.from_bytes(keccak256(SLOT), "big")
    assert keys == tuple(slots.fixed(first + index) for index in range(len(parts)))
    assert slots.string_of(word, parts) == text.decode()


@pytest.mark.parametrize("length", [0, 31, 32, 33, 65])
def test_reads_bytes_that_are_no_text(length: int) -> None:
    raw = b"\xff" * length
    assert slots.bytes_of(*stored(raw)) == raw


@pytest.mark.parametrize(
    "word", [bytes(31) + b"\x40", bytes(31) + b"\xfe", bytes(31) + b"\x01", slots.fixed(63)]
)
def test_refuses_string_slots_on_which_solidity_panics(word: bytes) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        slots.string_slots(word, SLOT)
    assert caught.value.code == "proof.slot.malformed"


@pytest.mark.parametrize("word", [slots.fixed(2 * 257 + 1), b"\xff" * 32])
def test_n03_refuses_a_string_of_any_claimed_length(word: bytes) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        slots.string_slots(word, SLOT)
    assert caught.value.code == "proof.string.size"


def test_n06_refuses_a_string_that_is_not_utf8() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        slots.string_of(b"\xff".ljust(31, b"\0") + b"\x02", ())
    assert caught.value.code == "proof.string.encoding"


def test_refuses_a_slot_that_is_no_address() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        slots.address_in(b"\x01" + bytes(31))
    assert caught.value.code == "proof.slot.malformed"


def test_packed_bools_are_read_from_their_own_byte() -> None:
    word = bytes(30) + b"\x01\x00"
    assert (slots.bool_at(word), slots.bool_at(word, 1)) == (False, True)
