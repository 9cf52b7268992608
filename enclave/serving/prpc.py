"""prpc over HTTP: one route per service, from bytes to a handler and back (spec kms section 1).

The wire rules are `shared.rpc.codec`'s. Every failure is HTTP 400 with the error text; a machine code stands
beside it, which upstream's clients ignore.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from enclave.log import log_event
from shared.errors import DstackError, ProtocolError
from shared.rpc.codec import (
    MAX_BODY_BYTES,
    Encoding,
    choose_encoding,
    decode,
    encode,
    error_body,
    from_query,
    method_name,
)

CallerT = TypeVar("CallerT")

PROMPT_BODY_BYTES = 64 * 1024
"""A larger body is decoded in a worker thread: on the event loop every other connection would wait for it."""


class WouldBlockError(Exception):
    """What runs on the event loop cannot answer without waiting: a worker thread must."""


class Procedure(NamedTuple, Generic[CallerT]):
    """One method: its request type and its handler, which runs in a worker thread.

    `prompt` is the same method for the event loop, tried first where there is one. It answers, refuses, or
    raises `WouldBlockError` before it has done anything; `handler` then runs. A thread per request costs
    more than a key release does.
    """

    request: type[Message]
    handler: Callable[[Any, CallerT], Message]
    prompt: Callable[[Any, CallerT], Message] | None = None


class _Request(NamedTuple):
    """One request, read."""

    verb: str
    segment: str
    query: str
    content_type: str | None
    peer_chain: list[bytes]
    body: bytes


class _Answer(NamedTuple):
    """One response."""

    status: int
    encoding: Encoding
    body: bytes


class PrpcService(Generic[CallerT]):
    """The methods of one service, as an ASGI application behind one route.

    `identify` turns the TLS peer's certificates (DER, leaf first, empty without a client certificate) into
    what handlers take as the caller. It runs before dispatch for every method, and its refusal is final.
    `recognise` is the same for the event loop, and raises `WouldBlockError` as `Procedure.prompt` does.
    """

    def __init__(
        self,
        name: str,
        procedures: Mapping[str, Procedure[CallerT]],
        identify: Callable[[list[bytes]], CallerT],
        recognise: Callable[[list[bytes]], CallerT] | None = None,
    ) -> None:
        self._name = name
        self._procedures = procedures
        self._identify = identify
        self._recognise = recognise

    def route(self) -> Route:
        """Return the route `/prpc/<method>`."""
        return Route("/prpc/{method}", self, methods=["GET", "POST"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of the route."""
        status, encoding, body = await self._serve(scope, receive)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", encoding.value.encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Scope, receive: Receive) -> _Answer:
        verb, segment, query = (
            scope["method"],
            scope["path_params"]["method"],
            scope["query_string"].decode(errors="replace"),
        )
        try:
            body = await _bounded_body(receive)
        except ProtocolError as error:
            return _refusal(segment, error, _encoding(verb, query, None))
        peer_chain = scope.get("state", {}).get("peer_chain", [])
        request = _Request(verb, segment, query, _content_type(scope), peer_chain, body)
        try:
            return self._answer(request, on_loop=True)
        except WouldBlockError:
            return await run_in_threadpool(self._answer, request, on_loop=False)

    def _answer(self, request: _Request, *, on_loop: bool) -> _Answer:
        """Identify, decode, call and encode."""
        verb, segment, query, content_type, peer_chain, body = request
        # Until the caller is known upstream chooses the form of an error without looking at Content-Type.
        encoding = _encoding(verb, query, None)
        try:
            identify = self._recognise if on_loop else self._identify
            if identify is None or (on_loop and len(body) > PROMPT_BODY_BYTES):
                raise WouldBlockError
            caller = identify(peer_chain)
            if encoding is not Encoding.JSON:  # which no header changes
                encoding = _encoding(verb, query, content_type)
            name = method_name(self._name, segment)
            procedure = self._procedures.get(name)
            if procedure is None:
                raise ProtocolError("prpc.method", f"Service not found: {name}")
            call = procedure.prompt if on_loop else procedure.handler
            if call is None:
                raise WouldBlockError
            if verb == "GET":
                message = from_query(procedure.request, query)
            else:
                message = decode(procedure.request, body, encoding)
            return _Answer(200, encoding, encode(call(message, caller), encoding))
        except DstackError as error:
            return _refusal(segment, error, encoding)


def _refusal(method: str, error: DstackError, encoding: Encoding) -> _Answer:
    log_event("prpc.refused", method=method, code=error.code, message=error.message)
    return _Answer(400, encoding, error_body(error.message, error.code, encoding))


def _encoding(verb: str, query: str, content_type: str | None) -> Encoding:
    try:
        return choose_encoding(verb, query, content_type)
    except ProtocolError:  # an oversize query; parsing it again for the input reports it
        return Encoding.JSON


def _content_type(scope: Scope) -> str | None:
    value: bytes | None = next((value for name, value in scope["headers"] if name == b"content-type"), None)
    return None if value is None else value.decode("latin-1")


async def _bounded_body(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProtocolError("prpc.disconnected", "the client left before its request was complete")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise ProtocolError("prpc.size", "failed to read data: payload too large")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)
