"""JSON as a verifier reads it: UTF-8, bounded, no duplicate keys, keys that are text, no NaN.

Parsers disagree on a key that occurs twice, so a document with one means two things: it is refused.
"""

import json
import re
from typing import Any, Final, NoReturn

from shared.errors import ProtocolError

MAX_DEPTH: Final = 64  # far above what any of our documents nest

_SHOWN: Final = 64  # characters of a key that an error repeats
# Possessive: the regex engine would otherwise keep a hundred bytes of state per character of a string.
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)


class _DuplicateKeyError(ValueError):
    pass


def decode_json(raw: bytes, *, what: str, code: str, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:  # noqa: ANN401 - JSON is untyped
    """Return the parsed document.

    `what` names it in sentences, `code` is the first part of the error code. Raises `ProtocolError`:
    `{code}.size`, `{code}.syntax`, `{code}.duplicate_key`, `{code}.depth`.
    """
    if len(raw) > max_bytes:
        raise ProtocolError(f"{code}.size", f"{what} has {len(raw)} bytes, expected at most {max_bytes}")
    if has_more_brackets(raw, max_depth):
        _check_depth(raw, what, code, max_depth)
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except _DuplicateKeyError as error:
        raise ProtocolError(f"{code}.duplicate_key", f"{what} has the key {error} twice") from error
    except ValueError as error:
        raise ProtocolError(f"{code}.syntax", f"{what} is not utf-8 json") from error


def has_more_brackets(raw: bytes, limit: int) -> bool:
    """Whether a document has more than `limit` opening brackets, those in strings included.

    Fast where there are few of them in much text.
    """
    found = 0
    for bracket in (b"{", b"["):
        at = raw.find(bracket)
        while at >= 0:
            found += 1
            if found > limit:
                return True
            at = raw.find(bracket, at + 1)
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if not key.isascii():
            key.encode()  # half a surrogate pair can be spelt: whoever reads fields would fail at it
        if key in result:
            raise _DuplicateKeyError(repr(key[:_SHOWN]))
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not json")


def _check_depth(raw: bytes, what: str, code: str, max_depth: int) -> None:
    """Refuse by nesting before the parser recurses: how deep it may go depends on the process it runs in."""
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(raw):
        first = token[0][:1]
        if first in b"{[":
            depth += 1
            if depth > max_depth:
                raise ProtocolError(f"{code}.depth", f"{what} nests deeper than {max_depth} levels")
        elif first in b"}]":
            depth -= 1
