"""Recursive length prefix, canonical form only (Ethereum yellow paper, appendix B).

One value has exactly one encoding here: a length that could be shorter, a single byte with a prefix, or bytes
after the end are refused, so two different byte strings never decode to the same tree.
"""

from typing import TYPE_CHECKING, TypeAlias, Union

from shared.errors import InvalidEvidence

if TYPE_CHECKING:
    from collections.abc import Sequence

Item: TypeAlias = Union[bytes, "list[Item]"]
Encodable: TypeAlias = Union[bytes, "Sequence[Encodable]"]

# A trie node nests once (an embedded node in a branch), a header not at all; the rest is room to spare.
MAX_DEPTH = 8


def encode(item: Encodable) -> bytes:
    """Encode bytes, or nested sequences of bytes."""
    if isinstance(item, bytes):
        if len(item) == 1 and item[0] < 0x80:
            return item
        return _prefix(len(item), 0x80) + item
    body = b"".join([encode(child) for child in item])
    return _prefix(len(body), 0xC0) + body


def encode_int(value: int) -> bytes:
    """Return an RLP scalar: the minimal big-endian bytes of a non-negative integer; 0 is empty."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def decode(data: bytes) -> Item:
    """Decode exactly one item. Raises `InvalidEvidence("proof.rlp.invalid")` for anything not canonical."""
    item, end = _item(data, 0, len(data), 0)
    if end != len(data):
        raise invalid(f"{len(data) - end} bytes follow the item, expected none")
    return item


def decode_list(data: bytes) -> list[Item]:
    """Decode one item that must be a list."""
    item = decode(data)
    if isinstance(item, bytes):
        raise invalid("got a byte string, expected a list")
    return item


def to_int(item: Item, *, max_bytes: int, what: str) -> int:
    """Read an RLP scalar: a byte string of at most `max_bytes` without leading zeros."""
    if not isinstance(item, bytes) or len(item) > max_bytes or item[:1] == b"\0":
        raise invalid(f"{what} is not an integer of at most {max_bytes} bytes without leading zeros")
    return int.from_bytes(item, "big")


def to_bytes(item: Item, *, length: int, what: str) -> bytes:
    """Read a byte string of exactly `length` bytes."""
    if not isinstance(item, bytes) or len(item) != length:
        raise invalid(f"{what} is not a byte string of {length} bytes")
    return item


def _prefix(length: int, base: int) -> bytes:
    if length < 56:
        return bytes([base + length])
    size = encode_int(length)
    return bytes([base + 55 + len(size)]) + size


def _item(data: bytes, at: int, end: int, depth: int) -> tuple[Item, int]:
    if at >= end:
        raise invalid("the input ends where an item was expected")
    first = data[at]
    if first < 0x80:
        return data[at : at + 1], at + 1
    if first < 0xC0:
        start, stop = _span(data, at, end, first - 0x80)
        if stop - start == 1 and data[start] < 0x80:
            raise invalid("a single byte below 0x80 has a length prefix")
        return data[start:stop], stop
    if depth >= MAX_DEPTH:
        raise invalid(f"lists nest deeper than {MAX_DEPTH}")
    start, stop = _span(data, at, end, first - 0xC0)
    items: list[Item] = []
    while start < stop:
        length = data[start] - 0x80
        after = start + 1 + length
        if 0 <= length < 56 and length != 1 and after <= stop:  # most items, without a call for each
            items.append(data[start + 1 : after])
            start = after
        else:
            item, start = _item(data, start, stop, depth + 1)
            items.append(item)
    return items, stop


def _span(data: bytes, at: int, end: int, code: int) -> tuple[int, int]:
    """Return where the payload of the item at `at` starts and stops; `code` is its prefix less the base."""
    start = at + 1
    length = code
    if code > 55:
        size = code - 55
        start += size
        raw = data[at + 1 : start]
        length = int.from_bytes(raw, "big")
        if start > end or raw[0] == 0 or length < 56:
            raise invalid("a length is not written in its shortest form")
    if start + length > end:
        raise invalid(f"an item of {length} bytes runs past its container")
    return start, start + length


def invalid(message: str) -> InvalidEvidence:
    """Return the error for bytes that are not canonical RLP of what was expected."""
    return InvalidEvidence("proof.rlp.invalid", f"rlp: {message}")
