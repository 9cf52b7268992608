"""Hex at the edge: bytes are `bytes` inside, and text only where a wire format wants text."""

from binascii import unhexlify

from shared.errors import ConfigError, ProtocolError


def decode_hex(text: str, *, what: str, length: int | None = None, prefix: bool = True) -> bytes:
    """Decode hex digits to bytes.

    `what` names the field in the error. `length` is the exact number of bytes wanted; None takes any.
    A leading `0x` is accepted unless `prefix` is False. Whitespace, odd digit counts and other characters
    raise `ProtocolError("hex.invalid")`, a wrong size `ProtocolError("hex.length")`.
    """
    digits = text[2:] if prefix and text.startswith("0x") else text
    try:
        raw = unhexlify(digits)
    except ValueError as error:
        raise ProtocolError("hex.invalid", f"{what} is not an even number of hex digits") from error
    if length is not None and len(raw) != length:
        raise ProtocolError("hex.length", f"{what} has {len(raw)} bytes, expected {length}")
    return raw


def decode_hex_setting(text: str, *, what: str, length: int, code: str) -> bytes:
    """Decode hex that an operator wrote; raises `ConfigError(code)` where `decode_hex` refuses."""
    try:
        return decode_hex(text, what=what, length=length)
    except ProtocolError as error:
        raise ConfigError(code, error.message) from error
