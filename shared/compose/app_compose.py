"""Bytes and hash of app-compose.json (spec deploy section 2.2).

The hash covers the exact bytes that are shipped; nobody re-serialises a document to check it. The canonical
form is for whoever writes one: all of upstream's SDKs agree on it for the documents accepted here.
"""

import json
from hashlib import sha256
from typing import Any, Final

from shared.errors import ProtocolError
from shared.strict_json import decode_json

MAX_COMPOSE_BYTES: Final = 50 * 1024 * 1024  # the guest's own cap on the file
_MAX_SAFE_INTEGER: Final = 2**53 - 1  # beyond it JavaScript writes another number


def compose_hash(raw: bytes) -> bytes:
    """Return the 32-byte SHA-256 of the exact bytes of an app-compose.json."""
    return sha256(raw).digest()


def parse_app_compose(raw: bytes) -> dict[str, Any]:
    """Return the document of an app-compose.json.

    Raises `ProtocolError`: `compose.size`, `compose.syntax`, `compose.duplicate_key`, `compose.depth`, and
    `compose.type` when it is not an object.
    """
    value = decode_json(raw, what="app-compose", code="compose", max_bytes=MAX_COMPOSE_BYTES)
    if not isinstance(value, dict):
        raise ProtocolError("compose.type", "app-compose is not a json object")
    return value


def canonical_bytes(document: dict[str, Any]) -> bytes:
    """Return the canonical form: keys sorted at every level, no spaces, raw UTF-8.

    Values on which serialisers differ are refused, because they would hash differently elsewhere:
    `compose.null` (upstream's SDKs drop or keep it), `compose.number` (fractions, NaN, integers beyond
    2**53), `compose.key` (not text, or beyond the basic plane, where sort orders differ), `compose.text`
    (lone surrogates), `compose.type`, `compose.depth`. All are `ProtocolError`.
    """
    if not isinstance(document, dict):
        raise ProtocolError("compose.type", "app-compose is not a json object")
    try:
        _check(document, "app-compose")
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except RecursionError as error:
        raise ProtocolError("compose.depth", "app-compose nests too deeply") from error
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError("compose.text", "app-compose holds a lone surrogate, expected text") from error


def _check(value: object, where: str) -> None:
    match value:
        case str() | bool():
            return
        case int() if -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER:
            return
        case int() | float():
            raise ProtocolError("compose.number", f"{where} is not an integer within 53 bits")
        case None:
            raise ProtocolError("compose.null", f"{where} is null: leave the field out")
        case list():
            for index, item in enumerate(value):
                _check(item, f"{where}[{index}]")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str) or any(character > "\uffff" for character in key):
                    raise ProtocolError("compose.key", f"{where} has a key that is not plain text")
                _check(item, f"{where}.{key}")
        case _:
            raise ProtocolError("compose.type", f"{where} is a {type(value).__name__}, expected json")
