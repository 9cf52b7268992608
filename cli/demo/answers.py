"""Reads what the demo's daemons answer and report; what does not parse fails the step that asked."""

from typing import TypeVar

import msgspec

from shared.errors import ProtocolError

T = TypeVar("T")

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_answer(body: bytes, type_: type[T], *, what: str) -> T:
    """Parse a JSON body, `what` in an error's text. Raises `ProtocolError("demo.answer")`."""
    try:
        return msgspec.json.decode(body, type=type_)
    except DECODE_ERRORS as error:
        raise unreadable(what, error) from error


def convert_answer(value: object, type_: type[T], *, what: str) -> T:
    """Check an object that was parsed already, such as an event. Raises `ProtocolError("demo.answer")`."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise unreadable(what, error) from error


def unreadable(what: str, error: Exception) -> ProtocolError:
    """Return the error for an answer that cannot be read because of `error`."""
    return ProtocolError("demo.answer", f"{what} cannot be read: {error}")
