"""prpc over HTTP: one route per service, from bytes to a handler and back (spec kms section 1).

The wire rules are `shared.rpc.codec`'s. Every failure is HTTP 400 with the error text; a machine code stands
beside it, which upstream's clients ignore.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from anyio import CapacityLimiter, to_thread
from google.protobuf.message import Message
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from enclave.log import log_event
from enclave.serving.rate_limit import RateLimited
from shared.errors import DstackError, ProtocolError
from shared.rpc.codec import (
    Encoding,
    ascii_json,
    choose_encoding,
    decode,
    encode,
    error_body,
    from_query,
    method_name,
)

CallerT = TypeVar("CallerT")

DEFAULT_BODY_BYTES = 128 * 1024
"""A vm_config of 64 KiB, quoted as JSON, fits. Upstream's 10 MiB, buffered before anyone is known, would let
a thousand anonymous connections take ten gigabytes; a method that needs more says so."""

ANONYMOUS_THREADS = 8
"""What callers without verified evidence share, so that they cannot hold up those who have it."""

IDENTIFYING_THREADS = 16
"""What callers share whose evidence is still to be verified. That may fetch for many seconds, and evidence
that makes us fetch costs its sender little: it must not take the threads of callers that are known."""

KNOWN_THREADS = 40
"""What callers with verified evidence share. Each may wait for the policy's endpoints for several seconds."""

TOO_LARGE = "prpc.size"

FAILED = "prpc.failed"
"""In logs and counters, a call that ended in an error of the program. The answer is a bare 500."""

OTHER = "other"
"""Stands for every method that does not exist, in limits and counters."""

MAX_METHOD_NAME = 64
"""Characters of an unknown method's name that a log line or an answer repeats."""

MAX_MESSAGE = 1024
"""Characters of an error's sentence that a log line repeats: it may quote a peer. The caller has it whole."""

PROMPT_BODY_BYTES = 16 * 1024
"""A larger body is decoded in a worker thread: on the event loop every other connection would wait for it."""

PROMPT_BRACKETS = 64
"""So is one with more objects and arrays, those in quoted documents included: each costs as much as a hundred
bytes of text, and anybody may send one."""

MAX_BRACKETS = 1024
"""More than any request has. The largest body has room for 40,000, and threads share one interpreter."""


class Dialect(NamedTuple):
    """Where services of upstream's differ in how they speak. As it stands here, it is the KMS's.

    `unknown_status` is for a method that does not exist, `oversize_status` for a body beyond its limit,
    `unknown_body` that limit where there is no method. With `header_counts_early`, an error that comes
    before the caller is known minds Content-Type as every other one does; with `ascii`, JSON is in ASCII.
    """

    unknown_status: int = 400
    oversize_status: int = 400
    unknown_body: int = DEFAULT_BODY_BYTES
    header_counts_early: bool = False
    ascii: bool = False


KMS_DIALECT = Dialect()


class WouldBlockError(Exception):
    """What runs on the event loop cannot answer without waiting: a worker thread must."""


class Procedure(NamedTuple, Generic[CallerT]):
    """One method: its request type and its handler, which runs in a worker thread.

    `prompt` is the same method for the event loop, tried first where there is one. It answers, refuses, or
    raises `WouldBlockError` before it has done anything; `handler` then runs. A thread per request costs
    more than a key release does.
    `judges_evidence` is for a method that verifies evidence in the request itself, which may fetch: it takes
    the threads of callers whose evidence is still to be verified, whoever calls.
    """

    request: type[Message]
    handler: Callable[[Any, CallerT], Message]
    prompt: Callable[[Any, CallerT], Message] | None = None
    max_body: int = DEFAULT_BODY_BYTES
    judges_evidence: bool = False


class _Request(NamedTuple):
    """One request, read."""

    verb: str
    query: str
    encoding: Encoding
    body: bytes


class _Answer(NamedTuple):
    """One response; `retry_after` in seconds, 0 for none."""

    status: int
    encoding: Encoding
    body: bytes
    retry_after: int = 0


class Refusal(NamedTuple, Generic[CallerT]):
    """One refused request. `method` is as the client wrote it, cut; `caller` None until it is identified."""

    method: str
    error: DstackError
    peer_chain: list[bytes]
    caller: CallerT | None


class Reception(Generic[CallerT]):
    """What is done around each call besides answering it. This one limits nothing, and logs refusals.

    `before_call` and `answered` are given `OTHER` for a method that does not exist. All run on the event
    loop: none may wait.
    """

    def before_identification(self) -> None:
        """Raise to refuse a caller whose certificate has to be verified, which is what costs."""

    def before_call(self, method: str, caller: CallerT) -> None:
        """Raise to refuse an identified caller's call."""

    def answered(self, method: str, caller: CallerT) -> None:
        """Note a call that was answered."""

    def refused(self, refusal: Refusal[CallerT]) -> None:
        """Note a call that was not: once for each."""
        error = refusal.error
        log_event("prpc.refused", method=refusal.method, code=error.code, message=error.message[:MAX_MESSAGE])


class PrpcService(Generic[CallerT]):
    """The methods of one service, as an ASGI application behind one route.

    `identify` turns the TLS peer's certificates (DER, leaf first, empty without a client certificate) into
    what handlers take as the caller, None for one without evidence. It runs before dispatch for every method,
    and its refusal is final.
    `recognise` is the same for the event loop, and raises `WouldBlockError` as `Procedure.prompt` does.
    """

    def __init__(
        self,
        name: str,
        procedures: Mapping[str, Procedure[CallerT]],
        identify: Callable[[list[bytes]], CallerT],
        recognise: Callable[[list[bytes]], CallerT] | None = None,
        reception: Reception[CallerT] | None = None,
        *,
        dialect: Dialect = KMS_DIALECT,
    ) -> None:
        self._name = name
        self._dialect = dialect
        self._procedures = procedures
        self._identify = identify
        self._recognise = recognise
        self._reception: Reception[CallerT] = reception or Reception()
        self._known = CapacityLimiter(KNOWN_THREADS)
        self._anonymous = CapacityLimiter(ANONYMOUS_THREADS)
        self._identifying = CapacityLimiter(IDENTIFYING_THREADS)

    def route(self, mount: str = "/prpc") -> Route:
        """Return the route `<mount>/<method>`; `mount` is empty for the root."""
        route = Route(f"{mount}/{{method}}", self, methods=["GET", "POST"])
        route.methods = {"GET", "POST"}  # starlette adds HEAD, which would run a method and drop its answer
        return route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of the route."""
        status, encoding, body, retry_after = await self._serve(scope, receive)
        headers = [(b"content-length", b"%d" % len(body)), (b"content-type", encoding.value.encode())]
        if retry_after:
            headers.append((b"retry-after", b"%d" % retry_after))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, scope: Scope, receive: Receive) -> _Answer:
        verb, query = scope["method"], scope["query_string"].decode(errors="surrogateescape")
        name = method_name(self._name, scope["path_params"]["method"])
        procedure = self._procedures.get(name)
        peer_chain = scope.get("state", {}).get("peer_chain", [])
        caller: CallerT | None = None
        # Until the caller is known upstream chooses the form of an error without looking at Content-Type.
        dialect = self._dialect
        encoding = _encoding(verb, query, _content_type(scope) if dialect.header_counts_early else None)
        status = 400
        try:
            body = await _bounded_body(receive, procedure.max_body if procedure else dialect.unknown_body)
            caller = identified = await self._caller(peer_chain)
            encoding = _encoding(verb, query, _content_type(scope))
            self._reception.before_call(name if procedure else OTHER, identified)
            if procedure is None:
                status = dialect.unknown_status
                text = f"Service not found: {name[:MAX_METHOD_NAME]}"
                raise ProtocolError("prpc.method", text)  # noqa: TRY301 - refusals have one way out
            answer = await self._dispatch(procedure, _Request(verb, query, encoding, body), identified)
        except DstackError as error:
            self._reception.refused(Refusal(name[:MAX_METHOD_NAME], error, peer_chain, caller))
            retry_after = error.retry_after if isinstance(error, RateLimited) else 0
            if error.code == TOO_LARGE:
                status = dialect.oversize_status
            told = self._written(error_body(error.message, error.code, encoding), encoding)
            return _Answer(status, encoding, told, retry_after)
        except Exception:
            # nobody planned for it, and it is a refusal all the same
            failure = DstackError(FAILED, "the request could not be answered")
            self._reception.refused(Refusal(name[:MAX_METHOD_NAME], failure, peer_chain, caller))
            raise
        self._reception.answered(name, identified)
        return _Answer(200, encoding, self._written(answer, encoding))

    def _written(self, body: bytes, encoding: Encoding) -> bytes:
        return ascii_json(body) if self._dialect.ascii and encoding is Encoding.JSON else body

    async def _dispatch(self, procedure: Procedure[CallerT], request: _Request, caller: CallerT) -> bytes:
        if procedure.prompt is not None and _decodes_promptly(request.body):
            with suppress(WouldBlockError):
                return _call(procedure, procedure.prompt, request, caller)
        if procedure.judges_evidence:
            limiter = self._identifying
        else:
            limiter = self._anonymous if caller is None else self._known
        return await to_thread.run_sync(_call, procedure, procedure.handler, request, caller, limiter=limiter)

    async def _caller(self, peer_chain: list[bytes]) -> CallerT:
        if self._recognise is not None:
            with suppress(WouldBlockError):
                return self._recognise(peer_chain)
        self._reception.before_identification()
        return await to_thread.run_sync(self._identify, peer_chain, limiter=self._identifying)


def _call(
    procedure: Procedure[CallerT],
    handler: Callable[[Any, CallerT], Message],
    request: _Request,
    caller: CallerT,
) -> bytes:
    if request.verb == "GET":
        message = from_query(procedure.request, request.query)
    else:
        if request.encoding is Encoding.JSON and _brackets(request.body) > MAX_BRACKETS:
            raise ProtocolError(TOO_LARGE, "failed to read data: payload too large")
        message = decode(procedure.request, request.body, request.encoding)
    return encode(handler(message, caller), request.encoding)


def _decodes_promptly(body: bytes) -> bool:
    return len(body) <= PROMPT_BODY_BYTES and _brackets(body) <= PROMPT_BRACKETS


def _brackets(body: bytes) -> int:
    return body.count(b"{") + body.count(b"[")


@lru_cache(maxsize=64)  # a client writes the same query each time
def _encoding(verb: str, query: str, content_type: str | None) -> Encoding:
    try:
        return choose_encoding(verb, query, content_type)
    except ProtocolError:  # an oversize query; parsing it again for the input reports it
        return Encoding.JSON


def _content_type(scope: Scope) -> str | None:
    value: bytes | None = next((value for name, value in scope["headers"] if name == b"content-type"), None)
    return None if value is None else value.decode("latin-1")


async def _bounded_body(receive: Receive, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProtocolError("prpc.disconnected", "the client left before its request was complete")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > max_bytes:
            raise ProtocolError(TOO_LARGE, "failed to read data: payload too large")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)
