"""RLP: canonical forms only, round trips, and no exception but ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.chain import rlp
from shared.errors import InvalidEvidence

ITEMS = st.recursive(st.binary(max_size=80), lambda inner: st.lists(inner, max_size=5), max_leaves=20)


@pytest.mark.parametrize(
    ("item", "encoded"),
    [
        (b"", "80"),
        (b"\x00", "00"),
        (b"\x7f", "7f"),
        (b"\x80", "8180"),
        (b"dog", "83646f67"),
        ([], "c0"),
        ([b"cat", b"dog"], "c88363617483646f67"),
        ([[], [[]], [[], [[]]]], "c7c0c1c0c3c0c1c0"),
        (b"a" * 56, "b838" + "61" * 56),
        ([b"a" * 55], "f838b7" + "61" * 55),
    ],
)
def test_encodes_and_decodes_known_values(item: rlp.Item, encoded: str) -> None:
    assert rlp.encode(item).hex() == encoded
    assert rlp.decode(bytes.fromhex(encoded)) == item


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "8100",  # a single byte with a prefix
        "817f",
        "b80161",  # a long form for a short length
        "b837" + "61" * 55,
        "b90038" + "61" * 56,  # a length with a leading zero
        "b8",
        "b838",
        "83646f",
        "c3c0",
        "c2836461",  # an item that runs past its list
        "8080",
        "c000",
        "bfffffffffffffffff",
        "ffffffffffffffffff",
        "f800",
        "f837" + "00" * 55,
        "c8c7c6c5c4c3c2c1c0",  # nine lists, one in the other
    ],
)
def test_n02_refuses_what_is_not_canonical(encoded: str) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        rlp.decode(bytes.fromhex(encoded))
    assert caught.value.code == "proof.rlp.invalid"


@given(ITEMS)
def test_round_trip(item: rlp.Item) -> None:
    assert rlp.decode(rlp.encode(item)) == item


@given(st.binary(max_size=200))
def test_decodes_only_what_encodes_back_to_the_same_bytes(data: bytes) -> None:
    try:
        item = rlp.decode(data)
    except InvalidEvidence:
        return
    assert rlp.encode(item) == data


@pytest.mark.parametrize("item", [b"\0", b"\0\x01", b"\x01" * 9, []])
def test_refuses_integers_with_leading_zeros_or_too_many_bytes(item: rlp.Item) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        rlp.to_int(item, max_bytes=8, what="a number")
    assert caught.value.code == "proof.rlp.invalid"


def test_decode_list_refuses_a_string() -> None:
    with pytest.raises(InvalidEvidence) as caught:
        rlp.decode_list(b"\x83dog")
    assert caught.value.code == "proof.rlp.invalid"
