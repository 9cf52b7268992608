"""Solidity ABI for the views that we call: calldata out, results in (contracts sections 1.2 and 1.3).

Decoding is strict: an answer has exactly one form, so a number where a bool was expected or bytes behind the
end are errors, not values.
"""

from collections.abc import Sequence

from shared.boot_info import BootInfo
from shared.errors import ProtocolError
from shared.keccak import keccak256

_WORD = 32
# No string or list that we send or read has an honest reason to be longer.
MAX_STRING = 64 * 1024

IS_APP_ALLOWED = bytes.fromhex("1e079198")
IS_KMS_ALLOWED = bytes.fromhex("e067ec9d")
GATEWAY_APP_ID = bytes.fromhex("95f51931")
APP_IMPLEMENTATION = bytes.fromhex("25a992da")

REVERTED = "isAppAllowed reverts"
"""What a contract's own failure counts as: the key server denies then, too."""

MALFORMED = "isAppAllowed answers what is no decision"
"""What a reason counts as that is no text, or has no end: a key server that cannot read it denies, too."""


def call(selector: bytes, *words: bytes) -> bytes:
    """Return calldata of a view with static arguments; each is left-padded to a word."""
    return selector + b"".join(word.rjust(_WORD, b"\0") for word in words)


def boot_info_call(selector: bytes, boot_info: BootInfo) -> bytes:
    """Return calldata of `isAppAllowed` or `isKmsAllowed`; short hashes are left-padded with zeros."""
    strings = (_string(boot_info.tcb_status), _strings(boot_info.advisory_ids))
    fixed = (
        boot_info.app_id,
        boot_info.compose_hash,
        boot_info.instance_id,
        boot_info.device_id,
        boot_info.mr_aggregated,
        boot_info.mr_system,
        boot_info.os_image_hash,
    )
    head = b"".join(value.rjust(_WORD, b"\0") for value in fixed)
    first = len(head) + 2 * _WORD
    return b"".join((selector, _int(_WORD), head, _int(first), _int(first + len(strings[0])), *strings))


def decode_decision(data: bytes) -> tuple[bool, str]:
    """Read the `(bool, string)` of an authorization view. Raises `ProtocolError("abi.malformed")`."""
    return _bool(data, 0), _string_at(data, _WORD)


def decode_verdict(data: bytes) -> str:
    """Read the same as the reason of a refusal, empty where it allows. Raises as `decode_decision`."""
    allowed, reason = decode_decision(data)
    return "" if allowed else reason or "no reason given"


def decode_string(data: bytes) -> str:
    """Read a lone string. Raises `ProtocolError("abi.malformed")`."""
    return _string_at(data, 0)


def decode_bool(data: bytes) -> bool:
    """Read a lone bool. Raises `ProtocolError("abi.malformed")`."""
    _check_length(data, _WORD)
    return _bool(data, 0)


def decode_address(data: bytes) -> bytes:
    """Read a lone address, 20 bytes. Raises `ProtocolError("abi.malformed")`."""
    _check_length(data, _WORD)
    if any(data[:12]):
        raise _malformed("an address has more than 20 bytes")
    return data[12:]


def checksum_address(address: bytes) -> str:
    """Return a 20-byte address as 0x text with the mixed case of EIP-55."""
    digits = address.hex()
    mask = keccak256(digits.encode()).hex()
    return "0x" + "".join(
        char.upper() if int(bit, 16) >= 8 else char for char, bit in zip(digits, mask, strict=False)
    )


def _int(value: int) -> bytes:
    return value.to_bytes(_WORD, "big")


def _string(text: str) -> bytes:
    raw = text.encode()
    return _int(len(raw)) + raw + bytes(-len(raw) % _WORD)


def _strings(texts: Sequence[str]) -> bytes:
    encoded = [_string(text) for text in texts]
    at = len(encoded) * _WORD
    offsets = []
    for piece in encoded:
        offsets.append(_int(at))
        at += len(piece)
    return b"".join((_int(len(encoded)), *offsets, *encoded))


def _bool(data: bytes, at: int) -> bool:
    value = _uint_at(data, at)
    if value > 1:
        raise _malformed(f"a bool is {value}")
    return bool(value)


def _uint_at(data: bytes, at: int) -> int:
    if at + _WORD > len(data):
        raise _malformed(f"the result has {len(data)} bytes, expected at least {at + _WORD}")
    return int.from_bytes(data[at : at + _WORD], "big")


def _string_at(data: bytes, at: int) -> str:
    """Read the string whose offset is the last word of the head, at `at`."""
    start = _uint_at(data, at)
    if start != at + _WORD:
        raise _malformed(f"a string starts at {start}, expected {at + _WORD}")
    length = _uint_at(data, start)
    if length > MAX_STRING:
        raise _malformed(f"a string has {length} bytes, expected at most {MAX_STRING}")
    first = start + _WORD
    end = first + length
    _check_length(data, end + -length % _WORD)
    if any(data[end:]):
        raise _malformed("a string is padded with something else than zeros")
    try:
        return data[first:end].decode()
    except UnicodeDecodeError as error:
        raise _malformed("a string is not utf-8") from error


def _check_length(data: bytes, expected: int) -> None:
    if len(data) != expected:
        raise _malformed(f"the result has {len(data)} bytes, expected {expected}")


def _malformed(message: str) -> ProtocolError:
    return ProtocolError("abi.malformed", message)
