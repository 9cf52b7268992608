import cbor2
import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.attestation.cbor import MAX_DEPTH, decode_strict
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import refuses

U64 = (1 << 64) - 1
SCALARS = (
    st.integers(-U64 - 1, U64) | st.binary(max_size=300) | st.text(max_size=300) | st.booleans() | st.none()
)
KEYS = st.integers(-U64 - 1, U64) | st.text(max_size=30)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES.filter(lambda value: depth(value) <= MAX_DEPTH))
def test_reads_what_an_independent_encoder_writes(value: object) -> None:
    assert decode_strict(cbor2.dumps(value)) == value


@given(st.binary(max_size=60))
def test_raises_nothing_but_our_error_and_agrees_with_an_independent_decoder(data: bytes) -> None:
    try:
        value = decode_strict(data)
    except InvalidEvidence:
        return
    assert cbor2.loads(data) == value
    assert cbor2.dumps(value) == data


@given(VALUES, st.data())
def test_damaged_input_is_refused_or_means_other_bytes(value: object, data: st.DataObject) -> None:
    encoded = bytearray(cbor2.dumps(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        decoded = decode_strict(bytes(encoded))
    except InvalidEvidence:
        return
    assert cbor2.dumps(decoded) == encoded


def test_n01_refuses_trailing_bytes() -> None:
    with refuses("cbor.trailing"):
        decode_strict(b"\x01\x01")


@pytest.mark.parametrize("encoded", ["a2616101616102", "a201000100", "a3616100616200616100"])
def test_n02_refuses_duplicate_keys(encoded: str) -> None:
    with refuses("cbor.duplicate"):
        decode_strict(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    "encoded", ["5f4101ff", "7f6161ff", "9f01ff", "bf616101ff", "a1616abf616101ff", "1c", "5d"]
)
def test_n02_refuses_indefinite_and_reserved_lengths(encoded: str) -> None:
    with refuses("cbor.indefinite"):
        decode_strict(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    "encoded",
    ["1800", "1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "3817", "5801ff", "780161", "980101"],
)
def test_n02_refuses_integers_and_lengths_in_a_longer_form(encoded: str) -> None:
    with refuses("cbor.minimal"):
        decode_strict(bytes.fromhex(encoded))


def test_allows_an_indefinite_outer_map_only_where_asked() -> None:
    data = bytes.fromhex("bf616101616202ff")
    assert decode_strict(data, indefinite_top_map=True) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("encoded", "code"),
    [
        ("bf616101ff00", "cbor.trailing"),
        ("bf616101", "cbor.truncated"),
        ("bf6161", "cbor.truncated"),
        ("bf", "cbor.truncated"),
        ("bf616101616102ff", "cbor.duplicate"),
        ("bf61619f01ffff", "cbor.indefinite"),
        ("bf6161bf01ffff", "cbor.indefinite"),
    ],
)
def test_n02_an_indefinite_outer_map_is_still_strict(encoded: str, code: str) -> None:
    with refuses(code):
        decode_strict(bytes.fromhex(encoded), indefinite_top_map=True)


@pytest.mark.parametrize("encoded", ["c074", "d21864", "f93c00", "fa00000000", "f7", "e0", "f818", "ff"])
def test_refuses_tags_floats_and_other_simple_values(encoded: str) -> None:
    with refuses("cbor.type"):
        decode_strict(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    "encoded", ["5affffffff00", "9affffffff00", "baffffffff00", "9bffffffffffffffff", "4201", "8201", "a161"]
)
def test_n03_refuses_a_length_beyond_the_input(encoded: str) -> None:
    with refuses("cbor.length"):
        decode_strict(bytes.fromhex(encoded))


@pytest.mark.parametrize("encoded", ["", "18", "1901", "820118", "a16161"])
def test_refuses_truncated_input(encoded: str) -> None:
    with refuses("cbor.truncated"):
        decode_strict(bytes.fromhex(encoded))


def test_refuses_deep_nesting() -> None:
    with refuses("cbor.depth"):
        decode_strict(b"\x81" * 5000 + b"\x01")


@pytest.mark.parametrize("encoded", ["a1f501", "a1410101", "a18001", "a1f601"])
def test_refuses_keys_that_are_neither_integers_nor_text(encoded: str) -> None:
    with refuses("cbor.key"):
        decode_strict(bytes.fromhex(encoded))


def test_refuses_text_that_is_not_utf8() -> None:
    with refuses("cbor.utf8"):
        decode_strict(b"\x61\xff")
