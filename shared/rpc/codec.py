"""The prpc encodings: protobuf, and JSON with bytes as hex (spec kms sections 1.2 to 1.4).

The JSON mapping is not protobuf's own: names stay snake_case, bytes are lowercase hex, 64-bit integers are
numbers, unset optional and message fields are null, every other field is always present.
"""

import json
import re
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from shared.errors import ProtocolError
from shared.hex import decode_hex
from shared.rpc.kms_pb2 import ProtoError
from shared.strict_json import decode_json

MAX_BODY_BYTES: Final = 10 * 1024 * 1024  # upstream's limit on a request
MAX_QUERY_BYTES: Final = 64 * 1024  # servers stop at less: a query carries ids, not evidence
_MAX_QUERY_FIELDS: Final = 64

_OMITTED_WHEN_EMPTY: Final = frozenset({"dstack_guest.GetQuoteResponse.attestation"})
"""Upstream leaves it out; every other field is written whatever it holds."""

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")

_Message = TypeVar("_Message", bound=Message)


class Encoding(Enum):
    """How a body is written; the value is its content type."""

    PROTOBUF = "application/octet-stream"
    JSON = "application/json"


def choose_encoding(method: str, query: str, content_type: str | None) -> Encoding:
    """Return the encoding of a request and its answer.

    `method` is GET or POST, `query` the raw query string, `content_type` that header or None. Errors that
    precede dispatch ignore the header upstream: pass None for those. A GET's input is its query
    (`from_query`), whatever this returns for its answer.
    """
    if method == "GET":
        return Encoding.JSON
    # Blank values count: upstream's clients send a bare `?json`. Only the first such field does.
    switch = next((value for name, value in _fields(query) if name == "json"), None)
    if switch in ("", "1", "true"):
        return Encoding.JSON
    media_type = (content_type or "").partition(";")[0].strip().lower()
    return Encoding.JSON if media_type == Encoding.JSON.value else Encoding.PROTOBUF


def method_name(service: str, segment: str) -> str:
    """Return the method that the last path segment names: the service prefix is optional, and may repeat.

    Where methods have no prefix, `service` is empty.
    """
    if not service:
        return segment
    prefix = f"{service}."
    while segment.startswith(prefix):
        segment = segment.removeprefix(prefix)
    return segment


def encode(message: Message, encoding: Encoding) -> bytes:
    """Return the body that carries `message`."""
    return to_json(message) if encoding is Encoding.JSON else message.SerializeToString()


def decode(cls: type[_Message], body: bytes, encoding: Encoding) -> _Message:
    """Return the message that a POST body carries. An empty body is a message of defaults.

    A method that takes `google.protobuf.Empty` ignores its body.

    Raises `ProtocolError("prpc.*")`.
    """
    if encoding is Encoding.JSON:
        return from_json(cls, body)
    if issubclass(cls, Empty):
        return cls()
    _check_size(body)
    try:
        return cls.FromString(body)
    except DecodeError as error:
        raise ProtocolError("prpc.protobuf", f"body is not a protobuf {cls.DESCRIPTOR.name}") from error


def to_json(message: Message) -> bytes:
    """Return the compact JSON of a message; `null` for `google.protobuf.Empty`."""
    if isinstance(message, Empty):
        return b"null"
    return msgspec.json.encode(_plain(message))


def from_json(cls: type[_Message], body: bytes) -> _Message:
    """Return the message of a JSON object. Unknown fields are ignored, missing ones keep their defaults.

    A method that takes `google.protobuf.Empty` ignores its body. Raises `ProtocolError`: `prpc.size`,
    `prpc.json.*` for what `decode_json` refuses, `prpc.json.type` and `prpc.json.range` for a field.
    """
    if issubclass(cls, Empty):
        return cls()
    _check_size(body)
    if not body:
        return cls()
    value = decode_json(body, what="body", code="prpc.json", max_bytes=MAX_BODY_BYTES)
    message = cls()
    _fill(message, value, "body")
    return message


def from_query(cls: type[_Message], query: str) -> _Message:
    """Return the message of a raw query string, as GET requests carry it.

    Integers are decimal, booleans `true` or `false`, bytes hex; unknown names are ignored. Raises
    `ProtocolError`: `prpc.query` for an oversize query, one that is not UTF-8 (two of them must not name one
    key), a field that occurs twice or has no text form; `prpc.json.type` and `prpc.json.range` as in a body.
    """
    message = cls()
    plans = {plan.name: plan for plan in _plan(cls.DESCRIPTOR)}
    seen: set[str] = set()
    for name, text in _fields(query, errors="strict"):
        plan = plans.get(name)
        if plan is None:
            continue
        if name in seen or plan.repeated or plan.from_text is None:
            raise ProtocolError("prpc.query", f"{name} cannot be given in a query, or was given twice")
        seen.add(name)
        setattr(message, name, plan.read(plan.from_text(text), name))
    return message


def error_body(text: str, code: str | None, encoding: Encoding) -> bytes:
    """Return the body of a failed call: upstream's text, and our machine code unless it is None."""
    text = text.encode(errors="replace").decode()  # a lone surrogate has no place in either encoding
    if encoding is Encoding.PROTOBUF:
        return ProtoError(message=text, code=code or "").SerializeToString()
    content = {"error": text} if code is None else {"error": text, "code": code}
    return json.dumps(content, indent=2, ensure_ascii=False).encode()


def ascii_json(body: bytes) -> bytes:
    """Return the same JSON in ASCII: a client of upstream's counts characters where bytes are meant."""
    if body.isascii():
        return body
    return _NOT_ASCII.sub(_escaped, body.decode()).encode()


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]  # a pair of surrogates beyond the basic plane


class _Field(NamedTuple):
    """How one field goes to and from JSON, worked out once per message type."""

    name: str
    repeated: bool
    nullable: bool
    message: Descriptor | None
    is_bytes: bool
    omitted_when_empty: bool
    read: Callable[[Any, str], Any]
    from_text: Callable[[str], Any] | None


@cache
def _plan(descriptor: Descriptor) -> tuple[_Field, ...]:
    fields = []
    for field in descriptor.fields:
        read, from_text = _READERS[field.type]
        fields.append(
            _Field(
                name=field.name,
                repeated=field.is_repeated,
                nullable=field.has_presence,
                message=field.message_type,
                is_bytes=field.type == FieldDescriptor.TYPE_BYTES,
                omitted_when_empty=field.full_name in _OMITTED_WHEN_EMPTY,
                read=read,
                from_text=from_text,
            )
        )
    return tuple(fields)


def _plain(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in _plan(message.DESCRIPTOR):
        name = field.name
        if field.nullable and not message.HasField(name):
            result[name] = None
            continue
        value = getattr(message, name)
        if field.omitted_when_empty and not value:
            continue
        if field.repeated:
            result[name] = [_plain_item(field, item) for item in value]
        else:
            result[name] = _plain_item(field, value)
    return result


def _plain_item(field: _Field, value: Any) -> Any:  # noqa: ANN401 - a field's value has any of the types
    if field.is_bytes:
        return value.hex()
    return _plain(value) if field.message is not None else value


def _fill(message: Message, value: object, where: str) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(where, "an object")
    for field in _plan(message.DESCRIPTOR):
        name = field.name
        if name not in value or (field.nullable and value[name] is None):
            continue
        item = value[name]
        if field.repeated:
            if not isinstance(item, list):
                raise _wrong_type(name, "an array")
            target = getattr(message, name)
            for entry in item:
                if field.message is None:
                    target.append(field.read(entry, name))
                else:
                    _fill(target.add(), entry, name)
        elif field.message is None:
            setattr(message, name, field.read(item, name))
        else:
            child = getattr(message, name)
            child.SetInParent()
            _fill(child, item, name)


def _read_string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ProtocolError("prpc.json.type", f"{name} holds a lone surrogate, expected text") from error
    return value


def _read_bytes(value: object, name: str) -> bytes:
    digits = _read_string(value, name)
    while digits.startswith("0x"):
        digits = digits.removeprefix("0x")
    try:
        return decode_hex(digits, what=name, prefix=False)
    except ProtocolError as error:
        raise ProtocolError("prpc.json.type", error.message) from error


def _read_bool(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean")
    return value


def _unsigned(bits: int) -> Callable[[object, str], int]:
    def read(value: object, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(name, "an integer")
        if not 0 <= value < 1 << bits:
            raise ProtocolError("prpc.json.range", f"{name} is not an unsigned {bits}-bit number")
        return value

    return read


def _read_int64(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong_type(name, "an integer")
    if not -(1 << 63) <= value < 1 << 63:
        raise ProtocolError("prpc.json.range", f"{name} is not a signed 64-bit number")
    return value


def _read_message(_value: object, name: str) -> object:
    raise _wrong_type(name, "an object")  # pragma: no cover - messages are filled in place


def _integer_text(text: str) -> int | str:
    # 20 digits hold every uint64; isdecimal alone takes other scripts' digits too
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else text


def _bool_text(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text, text)


_READERS: Final[dict[int, tuple[Callable[[Any, str], Any], Callable[[str], Any] | None]]] = {
    FieldDescriptor.TYPE_STRING: (_read_string, str),
    FieldDescriptor.TYPE_BYTES: (_read_bytes, str),
    FieldDescriptor.TYPE_BOOL: (_read_bool, _bool_text),
    FieldDescriptor.TYPE_UINT32: (_unsigned(32), _integer_text),
    FieldDescriptor.TYPE_UINT64: (_unsigned(64), _integer_text),
    FieldDescriptor.TYPE_INT64: (_read_int64, None),
    FieldDescriptor.TYPE_MESSAGE: (_read_message, None),
}


def _fields(query: str, *, errors: str = "replace") -> list[tuple[str, str]]:
    if len(query) > MAX_QUERY_BYTES:
        raise ProtocolError("prpc.query", f"query has {len(query)} bytes, expected at most {MAX_QUERY_BYTES}")
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS, errors=errors)
    except UnicodeDecodeError as error:
        raise ProtocolError("prpc.query", "query is not utf-8") from error
    except ValueError as error:
        raise ProtocolError("prpc.query", f"query has more than {_MAX_QUERY_FIELDS} fields") from error


def _check_size(body: bytes) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError("prpc.size", "failed to read data: payload too large")


def _wrong_type(name: str, expected: str) -> ProtocolError:
    return ProtocolError("prpc.json.type", f"{name} is not {expected}")
