import pytest

from shared.errors import ProtocolError
from shared.hex import decode_hex
from tests.shared.refusal import refuses


@pytest.mark.parametrize("text", ["00ff", "0x00ff", "00FF", "0x00Ff"])
def test_reads_digits_of_either_case_with_or_without_a_prefix(text: str) -> None:
    assert decode_hex(text, what="it") == b"\x00\xff"


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0xf",
        "00 ff",
        " 00ff",
        "00ff\n",
        "00\t",
        "0x 00",
        "zz",
        "0x0x00",
        "\u0661\u0661",
        "\ud80000",
        "00\x00",
    ],
)
def test_refuses_what_is_not_an_even_number_of_digits(text: str) -> None:
    with refuses("hex.invalid", ProtocolError):
        decode_hex(text, what="it")


def test_refuses_a_prefix_where_there_is_none() -> None:
    with refuses("hex.invalid", ProtocolError):
        decode_hex("0x00", what="it", prefix=False)


def test_refuses_another_length() -> None:
    with refuses("hex.length", ProtocolError):
        decode_hex("00ff", what="it", length=3)
