"""Values of the Solidity types that our contracts' functions and events have, to ABI bytes and back.

Decoding is strict: bytes have one meaning, and a meaning one form. What solc's encoder would not have written
is refused, so what a person reads is what a contract will do.
"""

from collections.abc import Sequence
from typing import Final, Literal

from shared.errors import ProtocolError

Kind = Literal["address", "bytes32", "bool", "uint64", "string", "bytes", "(bytes,bytes,bytes,bytes)"]
Value = bytes | bool | int | str | tuple[bytes, ...]

_WORD: Final = 32
_KMS_INFO: Final = "(bytes,bytes,bytes,bytes)"
_SIZES: Final = {"address": 20, "bytes32": 32}
# A quote and its event log are the longest; transactions above 128 KiB are relayed by no node.
MAX_BYTES: Final = 128 * 1024


def is_dynamic(kind: Kind) -> bool:
    """Tell whether values of a type stand behind the head, as their length differs."""
    return kind in {"string", "bytes", _KMS_INFO}


def encode_values(kinds: Sequence[Kind], values: Sequence[Value]) -> bytes:
    """Return the ABI form of values, one per type. Raises `ProtocolError("abi.argument")` for others."""
    if len(kinds) != len(values):
        raise ProtocolError("abi.argument", f"got {len(values)} values, expected {len(kinds)}")
    parts = [_encoded(kind, value) for kind, value in zip(kinds, values, strict=True)]
    behind = _WORD * len(parts)
    head, tail = [], []
    for kind, part in zip(kinds, parts, strict=True):
        if is_dynamic(kind):
            head.append(behind.to_bytes(_WORD, "big"))
            tail.append(part)
            behind += len(part)
        else:
            head.append(part)
    return b"".join(head + tail)


def decode_values(kinds: Sequence[Kind], raw: bytes) -> tuple[Value, ...]:
    """Return the values that bytes mean. Raises `ProtocolError("abi.malformed")` for any other form."""
    values = tuple(_value(kind, raw, _WORD * index) for index, kind in enumerate(kinds))
    if encode_values(kinds, values) != raw:
        raise _malformed("values are not written as solidity writes them")
    return values


def _encoded(kind: Kind, value: Value) -> bytes:
    if kind == "bool" and isinstance(value, bool):
        return int(value).to_bytes(_WORD, "big")
    if kind == "uint64" and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64:
        return value.to_bytes(_WORD, "big")
    if kind == "string" and isinstance(value, str):
        return _bytes(value.encode())
    if kind == _KMS_INFO and isinstance(value, tuple):
        return encode_values(("bytes",) * 4, value)
    if isinstance(value, bytes) and (kind == "bytes" or len(value) == _SIZES.get(kind)):
        return _bytes(value) if kind == "bytes" else value.rjust(_WORD, b"\0")
    raise ProtocolError("abi.argument", f"a value is no {kind}")


def _bytes(raw: bytes) -> bytes:
    return len(raw).to_bytes(_WORD, "big") + raw + bytes(-len(raw) % _WORD)


def _value(kind: Kind, raw: bytes, at: int) -> Value:
    number = _number(raw, at)
    if kind == "bool" and number <= 1:
        return bool(number)
    if kind == "uint64" and number < 1 << 64:
        return number
    if kind == "bytes32" or (kind == "address" and number < 1 << 160):
        return number.to_bytes(_SIZES[kind], "big")
    if not is_dynamic(kind):
        raise _malformed(f"a word is no {kind}")
    if number > len(raw):
        raise _malformed("a value is said to begin behind the end")
    if kind == _KMS_INFO:
        parts = decode_values(("bytes",) * 4, raw[number:])
        return tuple(part for part in parts if isinstance(part, bytes))
    length = _number(raw, number)
    start = number + _WORD
    if length > MAX_BYTES or start + length > len(raw):
        raise _malformed("a value is said to be longer than what is there")
    content = raw[start : start + length]
    if kind == "bytes":
        return content
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _malformed("a string is not utf-8") from error


def _number(raw: bytes, at: int) -> int:
    if at + _WORD > len(raw):
        raise _malformed(f"{len(raw)} bytes end within a value")
    return int.from_bytes(raw[at : at + _WORD], "big")


def _malformed(message: str) -> ProtocolError:
    return ProtocolError("abi.malformed", message)
