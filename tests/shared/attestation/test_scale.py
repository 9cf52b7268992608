import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.attestation import scale
from shared.attestation.scale import Reader
from shared.errors import InvalidEvidence
from tests.shared.attestation.forgery import refuses


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (63, "fc"),
        (64, "0101"),
        (4526, "b946"),
        (16383, "fdff"),
        (16384, "02000100"),
        ((1 << 30) - 1, "feffffff"),
        (1 << 30, "0300000040"),
        ((1 << 32) - 1, "03ffffffff"),
        (1 << 32, "070000000001"),
    ],
)
def test_compact_length_has_one_form(value: int, encoded: str) -> None:
    assert scale.compact(value).hex() == encoded
    assert Reader(bytes.fromhex(encoded)).compact("n") == value


@pytest.mark.parametrize("longer", ["0100", "fd00", "02000000", "feff0000", "03ffffff3f", "070000000000"])
def test_n02_refuses_a_length_in_a_longer_form(longer: str) -> None:
    with refuses("scale.compact.minimal"):
        Reader(bytes.fromhex(longer)).compact("n")


def test_n03_refuses_a_length_beyond_the_input() -> None:
    with refuses("scale.truncated"):
        Reader(bytes.fromhex("feffffff00")).bytes_("quote")


def test_n03_refuses_a_huge_count_without_allocating() -> None:
    with refuses("scale.count"):
        Reader(bytes.fromhex("03ffffffff") + bytes(8)).list_of(lambda r: r.u8("x"), "events", smallest=1)


def test_n03_refuses_a_count_that_the_input_cannot_hold() -> None:
    with refuses("scale.count"):
        Reader(scale.compact(3) + bytes(5)).list_of(lambda r: r.take(2, "x"), "events", smallest=2)


def test_n01_refuses_trailing_bytes() -> None:
    reader = Reader(b"\x00\x00")
    reader.u8("x")
    with refuses("scale.trailing"):
        reader.finish()


def test_refuses_text_that_is_not_utf8() -> None:
    with refuses("scale.utf8"):
        Reader(b"\x04\xff").string("config")


@given(st.integers(0, 1 << 64))
def test_compact_round_trips(value: int) -> None:
    assert Reader(scale.compact(value)).compact("n") == value


@given(st.binary(max_size=12))
def test_an_accepted_compact_is_the_only_encoding_of_its_value(data: bytes) -> None:
    reader = Reader(data)
    try:
        value = reader.compact("n")
    except InvalidEvidence:
        return
    assert data.startswith(scale.compact(value))
