"""A strict CBOR decoder for signed evidence: one spelling per value, nothing left over (RFC 8949, 4.2).

It reads what the NSM writes (integers, byte and text strings, arrays, maps, false, true, null) and refuses
all else: tags, floats, indefinite lengths, integers and lengths in a longer form than needed, duplicate keys,
keys that are neither integer nor text, and trailing bytes. Two parsers can then not read two things from one
document.
"""

from typing import NoReturn

from shared.errors import InvalidEvidence

Value = int | bytes | str | bool | None | list["Value"] | dict[int | str, "Value"]

# The deepest real document has three levels; recursion stays far from the interpreter's limit.
MAX_DEPTH = 8

_INDEFINITE_MAP = 0xBF
_BREAK = 0xFF
_SIMPLE: dict[int, bool | None] = {0xF4: False, 0xF5: True, 0xF6: None}
# Smallest value that may use a 1, 2, 4 or 8 byte argument.
_FLOORS = {24: (1, 24), 25: (2, 1 << 8), 26: (4, 1 << 16), 27: (8, 1 << 32)}


def decode_strict(data: bytes, *, indefinite_top_map: bool = False) -> Value:
    """Decode exactly one value that fills `data`.

    `indefinite_top_map` lets the outermost map have an indefinite length: the NSM writes its payload so
    (every real document starts with byte bf). Raises `InvalidEvidence("cbor.*")`.
    """
    if indefinite_top_map and data[:1] == bytes([_INDEFINITE_MAP]):
        value, at = _open_map(data)
    else:
        value, at = _item(data, 0, 0)
    if at != len(data):
        raise InvalidEvidence("cbor.trailing", f"{len(data) - at} bytes follow the cbor value, expected none")
    return value


def _open_map(data: bytes) -> tuple[Value, int]:
    entries: dict[int | str, Value] = {}
    at = 1
    while data[at : at + 1] != bytes([_BREAK]):
        at = _entry(data, at, 1, entries)
    return entries, at + 1


def _item(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if at >= len(data):
        _truncated(at)
    head = data[at]
    major = head >> 5
    if major > 5:
        if head in _SIMPLE:
            return _SIMPLE[head], at + 1
        raise InvalidEvidence("cbor.type", f"byte {head:#04x} at offset {at} is a tag, float or simple value")
    if (argument := head & 0x1F) < 24:
        start = at + 1
    elif argument == 24 and data[at + 1 : at + 2] > b"\x17":  # a register's length, and most others
        argument, start = data[at + 1], at + 2
    else:
        argument, start = _argument(data, at)
    if major < 2:
        return (-1 - argument if major else argument), start
    # Every byte, character, item and entry takes at least one byte: a lying count allocates nothing.
    if argument > len(data) - start:
        raise InvalidEvidence(
            "cbor.length", f"length {argument} at offset {at} exceeds the {len(data) - start} bytes left"
        )
    if major > 3:
        return _container(data, start, depth + 1, argument, is_map=major == 5)
    end = start + argument
    return (data[start:end] if major == 2 else _text(data[start:end], at)), end


def _text(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvidence("cbor.utf8", f"text at offset {at} is not valid utf-8") from error


def _container(data: bytes, at: int, depth: int, count: int, *, is_map: bool) -> tuple[Value, int]:
    if depth > MAX_DEPTH:
        raise InvalidEvidence("cbor.depth", f"cbor nests deeper than {MAX_DEPTH} levels at offset {at}")
    if is_map:
        entries: dict[int | str, Value] = {}
        for _ in range(count):
            at = _entry(data, at, depth, entries)
        return entries, at
    items: list[Value] = []
    for _ in range(count):
        item, at = _item(data, at, depth)
        items.append(item)
    return items, at


def _argument(data: bytes, at: int) -> tuple[int, int]:
    """Read an argument of 1, 2, 4 or 8 bytes; return it and the offset behind it."""
    width, floor = _FLOORS.get(data[at] & 0x1F, (0, 0))
    if not width:
        raise InvalidEvidence(
            "cbor.indefinite", f"byte {data[at]:#04x} at offset {at} has no definite length"
        )
    end = at + 1 + width
    if end > len(data):
        _truncated(at)
    argument = int.from_bytes(data[at + 1 : end], "big")
    if argument < floor:
        raise InvalidEvidence(
            "cbor.minimal", f"{argument} at offset {at} takes {width} bytes, not its shortest form"
        )
    return argument, end


def _entry(data: bytes, at: int, depth: int, entries: dict[int | str, Value]) -> int:
    key, value_at = _item(data, at, depth)
    if type(key) is not int and type(key) is not str:  # a bool is an int, and no key
        raise InvalidEvidence("cbor.key", f"map key at offset {at} is neither an integer nor text")
    if key in entries:
        raise InvalidEvidence("cbor.duplicate", f"map key {key!r} at offset {at} occurs twice")
    entries[key], after = _item(data, value_at, depth)
    return after


def _truncated(at: int) -> NoReturn:
    raise InvalidEvidence("cbor.truncated", f"cbor ends inside the value at offset {at}")
