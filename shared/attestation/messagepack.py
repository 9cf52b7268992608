"""A strict MessagePack decoder for envelopes, and the writer of the same forms (spec attestation 1.4).

It reads what a V1 envelope is made of (unsigned integers, text, bytes, arrays, maps with text keys) and
refuses all else: negative numbers, floats, nil, booleans, extension types, integers and lengths in a longer
form than needed, duplicate keys and trailing bytes. Two parsers can then not read two things from one
envelope.

An array that begins with a number from 0 to 255 is a byte string in its other spelling and comes out as
`bytes`: no list of an envelope holds numbers. An empty array comes out as a list.
"""

import re
from typing import Final, NoReturn

from shared.attestation.scale import MAX_ITEMS
from shared.errors import InvalidEvidence

Value = int | bytes | str | list["Value"] | dict[str, "Value"]

# The deepest place is a register of a vTPM quote: six levels.
MAX_DEPTH: Final = 8
# Three event logs of `MAX_ITEMS` entries have 120,000 keys and values. Without a bound, ten million empty
# arrays of one byte each would be ten million objects.
MAX_VALUES: Final = 1 << 18

# One token is one byte of a byte string. The window bounds what the regex engine keeps per match.
_TOKENS: Final = re.compile(rb"[\x00-\x7f]*+(?:\xcc[\x80-\xff][\x00-\x7f]*+)*+")
_WINDOW: Final = 1 << 16
_TOKEN: Final = tuple(bytes([byte]) if byte < 0x80 else bytes([0xCC, byte]) for byte in range(256))

# head byte -> (kind, width of the length or number, smallest value that may use this width)
_HEADS: Final = {
    0xC4: ("bin", 1, 0),
    0xC5: ("bin", 2, 1 << 8),
    0xC6: ("bin", 4, 1 << 16),
    0xCC: ("uint", 1, 1 << 7),
    0xCD: ("uint", 2, 1 << 8),
    0xCE: ("uint", 4, 1 << 16),
    0xCF: ("uint", 8, 1 << 32),
    0xD9: ("str", 1, 1 << 5),
    0xDA: ("str", 2, 1 << 8),
    0xDB: ("str", 4, 1 << 16),
    0xDC: ("array", 2, 1 << 4),
    0xDD: ("array", 4, 1 << 16),
    0xDE: ("map", 2, 1 << 4),
    0xDF: ("map", 4, 1 << 16),
}


def decode_strict(data: bytes) -> Value:
    """Decode exactly one value that fills `data`.

    Raises `InvalidEvidence`: `msgpack.truncated`, `msgpack.trailing`, `msgpack.type`, `msgpack.minimal`,
    `msgpack.length` (more than the bytes left hold), `msgpack.count` (`MAX_ITEMS`, `MAX_VALUES`),
    `msgpack.depth`, `msgpack.key`, `msgpack.duplicate`, `msgpack.utf8`.
    """
    decoder = _Decoder(data)
    value = decoder.value(0)
    if decoder.at != len(data):
        raise InvalidEvidence(
            "msgpack.trailing", f"{len(data) - decoder.at} bytes follow the messagepack value, expected none"
        )
    return value


class _Decoder:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values = 0
        self.at = 0

    def value(self, depth: int) -> Value:
        self._values += 1
        if self._values > MAX_VALUES:
            raise InvalidEvidence("msgpack.count", f"messagepack has more than {MAX_VALUES} values")
        start = self.at
        kind, argument = self._head()
        if kind == "uint":
            return argument
        if kind in {"bin", "str"}:
            self._check_length(argument, start)
            raw = self._data[self.at : self.at + argument]
            self.at += argument
            return raw if kind == "bin" else _text(raw, start)
        if depth >= MAX_DEPTH:
            raise InvalidEvidence(
                "msgpack.depth", f"messagepack nests deeper than {MAX_DEPTH} levels at offset {start}"
            )
        if kind == "map":
            # a key and a value take at least one byte each
            self._check_length(2 * argument, start)
            return self._map(argument, depth + 1)
        self._check_length(argument, start)
        if argument and (self._data[self.at] < 0x80 or self._data[self.at] == 0xCC):
            return self._byte_array(argument)
        return self._array(argument, depth + 1)

    def _head(self) -> tuple[str, int]:
        """Read a head byte and the number or length that belongs to it."""
        at = self.at
        if at >= len(self._data):
            _truncated(at)
        head = self._data[at]
        self.at = at + 1
        if head < 0x80:
            return "uint", head
        if head < 0x90:
            return "map", head & 0x0F
        if head < 0xA0:
            return "array", head & 0x0F
        if head < 0xC0:
            return "str", head & 0x1F
        if head not in _HEADS:
            raise InvalidEvidence(
                "msgpack.type",
                f"byte {head:#04x} at offset {at} is nil, a boolean, float, extension or negative number",
            )
        kind, width, floor = _HEADS[head]
        self.at += width
        if self.at > len(self._data):
            _truncated(at)
        argument = int.from_bytes(self._data[at + 1 : self.at], "big")
        if argument < floor:
            raise InvalidEvidence(
                "msgpack.minimal", f"{argument} at offset {at} takes {width} bytes, not its shortest form"
            )
        return kind, argument

    def _map(self, count: int, depth: int) -> dict[str, Value]:
        if count > MAX_ITEMS:
            _too_many(count)
        entries: dict[str, Value] = {}
        for _ in range(count):
            start = self.at
            key = self.value(depth)
            if not isinstance(key, str):
                raise InvalidEvidence("msgpack.key", f"map key at offset {start} is not text")
            if key in entries:
                raise InvalidEvidence("msgpack.duplicate", f"map key at offset {start} occurs twice")
            entries[key] = self.value(depth)
        return entries

    def _array(self, count: int, depth: int) -> list[Value]:
        if count > MAX_ITEMS:
            _too_many(count)
        return [self.value(depth) for _ in range(count)]

    def _byte_array(self, count: int) -> bytes:
        start = self.at
        while count:
            if count == 1:
                # the smallest window that surely holds one token could hold two
                end = self.at + 1 + (self._data[self.at : self.at + 1] == b"\xcc")
                found = _TOKENS.match(self._data, self.at, end)
            else:
                found = _TOKENS.match(self._data, self.at, self.at + min(count, _WINDOW))
            chunk = found[0] if found else b""
            if not chunk:
                self._not_a_byte()
            # 0xcc is a prefix or a value, and a value has its prefix before it: pairs are values
            count -= len(chunk) - (chunk.count(b"\xcc") - chunk.count(b"\xcc\xcc"))
            self.at += len(chunk)
        tokens = self._data[start : self.at]
        return b"\xcc".join([part.replace(b"\xcc", b"") for part in tokens.split(b"\xcc\xcc")])

    def _not_a_byte(self) -> NoReturn:
        start = self.at
        kind, argument = self._head()  # says so itself when the number is truncated or not in shortest form
        raise InvalidEvidence(
            "msgpack.type", f"{kind} of {argument} at offset {start} stands in an array of bytes"
        )

    def _check_length(self, count: int, start: int) -> None:
        left = len(self._data) - self.at
        if count > left:
            raise InvalidEvidence(
                "msgpack.length", f"length at offset {start} needs {count} bytes, only {left} are left"
            )


def _text(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidEvidence("msgpack.utf8", f"text at offset {at} is not valid utf-8") from error


def _too_many(count: int) -> NoReturn:
    raise InvalidEvidence("msgpack.count", f"messagepack list of {count} items, at most {MAX_ITEMS} are read")


def _truncated(at: int) -> NoReturn:
    raise InvalidEvidence("msgpack.truncated", f"messagepack ends inside the value at offset {at}")


def uint(value: int) -> bytes:
    """Encode an unsigned integer below 2^64."""
    if value < 0x80:
        return bytes([value])
    for head, width in ((0xCC, 1), (0xCD, 2), (0xCE, 4)):
        if value < 1 << (8 * width):
            return bytes([head]) + value.to_bytes(width, "big")
    return b"\xcf" + value.to_bytes(8, "big")


def string(value: str) -> bytes:
    """Encode text."""
    raw = value.encode()
    if len(raw) < 0x20:
        return bytes([0xA0 | len(raw)]) + raw
    return _sized(len(raw), ((0xD9, 1), (0xDA, 2), (0xDB, 4))) + raw


def bin_(value: bytes) -> bytes:
    """Encode bytes as a byte string."""
    return _sized(len(value), ((0xC4, 1), (0xC5, 2), (0xC6, 4))) + value


def byte_array(value: bytes) -> bytes:
    """Encode bytes as an array of numbers."""
    return _array_head(len(value)) + b"".join([_TOKEN[byte] for byte in value])


def array(items: list[bytes]) -> bytes:
    """Encode an array of items that are encoded already."""
    return _array_head(len(items)) + b"".join(items)


def map_(entries: dict[str, bytes]) -> bytes:
    """Encode a map of at most 15 entries, in their order; the values are encoded already."""
    return bytes([0x80 | len(entries)]) + b"".join(string(key) + value for key, value in entries.items())


def _array_head(count: int) -> bytes:
    if count < 0x10:
        return bytes([0x90 | count])
    return _sized(count, ((0xDC, 2), (0xDD, 4)))


def _sized(length: int, forms: tuple[tuple[int, int], ...]) -> bytes:
    head, width = next(form for form in forms if length < 1 << (8 * form[1]))
    return bytes([head]) + length.to_bytes(width, "big")
