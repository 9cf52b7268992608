"""Protobuf by hand: varints and length-delimited fields are all that the KMS's messages are made of."""


def uint(number: int, value: int) -> bytes:
    """An integer field; a zero is not sent."""
    return _varint(number << 3) + _varint(value) if value else b""


def data(number: int, value: bytes) -> bytes:
    """A bytes, string or message field; an empty one is not sent."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value if value else b""


def text(number: int, value: str) -> bytes:
    return data(number, value.encode())


def fields(message: bytes) -> dict[int, list[int | bytes]]:
    """The fields of a message by number, in the order of their values."""
    found: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                found.setdefault(tag >> 3, []).append(value)
            case 2:
                if at + value > len(message):
                    raise ValueError("a field ends beyond its message")
                found.setdefault(tag >> 3, []).append(message[at : at + value])
                at += value
            case wire_type:
                raise ValueError(f"no field here has wire type {wire_type}")
    return found


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
        if byte < 0x80:
            return value, at
