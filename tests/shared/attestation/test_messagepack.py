import hypothesis.strategies as st
import pytest
from hypothesis import given

from shared.attestation.messagepack import (
    MAX_DEPTH,
    MAX_VALUES,
    Value,
    array,
    bin_,
    byte_array,
    decode_strict,
    map_,
    string,
    uint,
)
from shared.attestation.scale import MAX_ITEMS
from tests.shared.attestation.forgery import refuses


def encode(value: Value) -> bytes:
    match value:
        case int():
            return uint(value)
        case bytes():
            return bin_(value)
        case str():
            return string(value)
        case list():
            return array([encode(item) for item in value])
        case dict():
            return map_({key: encode(item) for key, item in value.items()})


def depth(value: Value) -> int:
    match value:
        case list():
            return 1 + max(map(depth, value), default=0)
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case _:
            return 0


LEAVES = st.integers(0, (1 << 64) - 1) | st.binary(max_size=300) | st.text(max_size=40)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        # a list that begins with a small number is a byte string in its other spelling
        st.lists(inner.filter(lambda item: not isinstance(item, int)), max_size=20)
        | st.dictionaries(st.text(max_size=5), inner, max_size=15)
    ),
    max_leaves=20,
).filter(lambda value: depth(value) <= MAX_DEPTH)


@given(VALUES)
def test_every_value_round_trips(value: Value) -> None:
    assert decode_strict(encode(value)) == value


@given(st.binary(max_size=600))
def test_bytes_round_trip_in_both_spellings(value: bytes) -> None:
    assert decode_strict(bin_(value)) == value
    assert decode_strict(byte_array(value)) == (value or [])


@pytest.mark.parametrize(
    "value",
    [b"\xcc" * 70_000, b"\x00\xcc" * 40_000, b"\xff" * 65_536, b"\x7f" * 65_537],
    ids=["prefixes", "mixed", "high", "low"],
)
def test_long_byte_arrays_cross_the_window(value: bytes) -> None:
    assert decode_strict(array([byte_array(value), byte_array(b"\x01"), byte_array(b"\xcc")])) == [
        value,
        b"\x01",
        b"\xcc",
    ]


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (0, "00"),
        (127, "7f"),
        (128, "cc80"),
        (255, "ccff"),
        (256, "cd0100"),
        (65536, "ce00010000"),
        (1 << 32, "cf0000000100000000"),
        ("a", "a161"),
        ("a" * 32, "d920" + "61" * 32),
        ("a" * 256, "da0100" + "61" * 256),
        (b"", "c400"),
        (b"a" * 256, "c50100" + "61" * 256),
        ([[]] * 16, "dc0010" + "90" * 16),
        ({"k": 1}, "81a16b01"),
    ],
)
def test_each_form_is_as_the_format_says(value: Value, wire: str) -> None:
    assert encode(value).hex() == wire
    assert decode_strict(bytes.fromhex(wire)) == value


def test_the_widest_lengths_are_read_and_written() -> None:
    long = b"a" * 70_000
    assert encode(long)[:5].hex() == "c600011170"
    assert byte_array(long)[:5].hex() == "dd00011170"
    assert encode(long.decode())[:5].hex() == "db00011170"
    for encoded in (encode(long), byte_array(long)):
        assert decode_strict(encoded) == long
    assert decode_strict(encode(long.decode())) == long.decode()


def test_a_map_of_sixteen_entries_is_read() -> None:
    entries = b"".join(string(f"k{number:02}") + b"\x01" for number in range(16))
    assert len(decode_strict(b"\xde\x00\x10" + entries)) == 16  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wire",
    [
        *("cc7f", "cd00ff", "ce0000ffff", "cf00000000ffffffff", "d91f", "da00ff", "db0000ffff"),
        *("c500ff", "c60000ffff", "dc000f", "dd0000ffff", "de000f", "df0000ffff", "92cc7f01", "9201cc7f"),
    ],
)
def test_n02_refuses_a_longer_form_than_needed(wire: str) -> None:
    with refuses("msgpack.minimal"):
        decode_strict(bytes.fromhex(wire) + bytes(70_000))


@pytest.mark.parametrize("head", [0xC0, 0xC1, 0xC2, 0xC3, 0xC7, 0xCA, 0xCB, 0xD0, 0xD3, 0xD4, 0xE0, 0xFF])
def test_refuses_a_type_that_no_envelope_has(head: int) -> None:
    with refuses("msgpack.type"):
        decode_strict(bytes([head]) + bytes(9))


@pytest.mark.parametrize("item", ["a161", "c400", "90", "cd0100", "c3"])
def test_refuses_another_value_among_bytes(item: str) -> None:
    with refuses("msgpack.type"):
        decode_strict(bytes.fromhex("9301" + item + "01"))


def test_n02_refuses_a_duplicate_key() -> None:
    with refuses("msgpack.duplicate"):
        decode_strict(bytes.fromhex("82a16101a16102"))


@pytest.mark.parametrize("key", ["01", "c40161", "90", "80"])
def test_refuses_a_key_that_is_not_text(key: str) -> None:
    with refuses("msgpack.key"):
        decode_strict(bytes.fromhex("81" + key + "01"))


def test_n01_refuses_trailing_bytes() -> None:
    with refuses("msgpack.trailing"):
        decode_strict(b"\x01\x01")


@pytest.mark.parametrize("wire", ["", "cc", "cd00", "c5ff", "81a161", "9201cc"])
def test_refuses_a_value_that_is_cut_off(wire: str) -> None:
    with refuses("msgpack.truncated"):
        decode_strict(bytes.fromhex(wire))


@pytest.mark.parametrize("wire", ["c6ffffffff", "dbffffffff", "ddffffffff", "dfffffffff", "a1", "9301"])
def test_n03_refuses_a_length_beyond_the_input(wire: str) -> None:
    with refuses("msgpack.length"):
        decode_strict(bytes.fromhex(wire))


def test_n03_refuses_a_map_whose_entries_cannot_fit() -> None:
    with refuses("msgpack.length"):
        decode_strict(bytes.fromhex("82a16101"))


def test_n06_refuses_text_that_is_not_utf8() -> None:
    with refuses("msgpack.utf8"):
        decode_strict(b"\xa1\xff")


def test_refuses_deep_nesting() -> None:
    assert decode_strict(b"\x91" * (MAX_DEPTH - 1) + b"\x90")
    with refuses("msgpack.depth"):
        decode_strict(b"\x91" * MAX_DEPTH + b"\x90")


def test_n10_refuses_more_items_than_any_log_has() -> None:
    with refuses("msgpack.count"):
        decode_strict(array([array([])] * (MAX_ITEMS + 1)))


def test_n10_refuses_a_map_of_too_many_keys() -> None:
    head = b"\xde" + (MAX_ITEMS + 1).to_bytes(2, "big")
    with refuses("msgpack.count"):
        decode_strict(head + b"".join(string(f"{n:05}") + b"\x01" for n in range(MAX_ITEMS + 1)))


def test_n10_refuses_many_small_lists() -> None:
    inner = array([array([])] * MAX_ITEMS)
    data = array([inner] * (MAX_VALUES // MAX_ITEMS))
    with refuses("msgpack.count"):
        decode_strict(data)


def test_n10_ten_megabytes_of_numbers_are_one_value() -> None:
    data = byte_array(b"\xcc" * 5_000_000)
    assert decode_strict(data) == b"\xcc" * 5_000_000
