"""prpc over HTTP: one route per service, from bytes to a handler and back (spec kms section 1).

The wire rules are `shared.rpc.codec`'s. Every failure is HTTP 400 with the error text; a machine code stands
beside it, which upstream's clients ignore.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

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


class PrpcService(Generic[CallerT]):
    """The methods of one service.

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
        return Route("/prpc/{method}", self._serve, methods=["GET", "POST"])

    async def _serve(self, request: Request) -> Response:
        verb, query = request.method, request.url.query
        try:
            body = await _bounded_body(request)
        except ProtocolError as error:
            return _refusal(request.path_params["method"], error, _encoding(verb, query, None))
        try:
            return self._answer(request, verb, query, body, on_loop=True)
        except WouldBlockError:
            return await run_in_threadpool(self._answer, request, verb, query, body, on_loop=False)

    def _answer(self, request: Request, verb: str, query: str, body: bytes, *, on_loop: bool) -> Response:
        """Identify, decode, call and encode."""
        segment = request.path_params["method"]
        # Until the caller is known upstream chooses the form of an error without looking at Content-Type.
        encoding = _encoding(verb, query, None)
        try:
            identify = self._recognise if on_loop else self._identify
            if identify is None:
                raise WouldBlockError
            caller = identify(_peer_chain(request))
            encoding = _encoding(verb, query, request.headers.get("content-type"))
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
            answer = encode(call(message, caller), encoding)
        except DstackError as error:
            return _refusal(segment, error, encoding)
        return Response(answer, media_type=encoding.value)


def _refusal(method: str, error: DstackError, encoding: Encoding) -> Response:
    log_event("prpc.refused", method=method, code=error.code, message=error.message)
    return Response(error_body(error.message, error.code, encoding), 400, media_type=encoding.value)


def _encoding(verb: str, query: str, content_type: str | None) -> Encoding:
    try:
        return choose_encoding(verb, query, content_type)
    except ProtocolError:  # an oversize query; parsing it again for the input reports it
        return Encoding.JSON


def _peer_chain(request: Request) -> list[bytes]:
    chain = getattr(request.state, "peer_chain", [])
    return list(chain)


async def _bounded_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise ProtocolError("prpc.size", "failed to read data: payload too large")
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise ProtocolError("prpc.disconnected", "the client left before its request was complete") from error
    return b"".join(chunks)
