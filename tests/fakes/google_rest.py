"""Google's REST APIs on a loopback port: handlers are given, the discovery documents hold both sides to them.

Whatever a client sends that a document does not know is answered as Google would, and stands in `violations`;
so does an answer of a handler that a document does not know. A test ends with `assert not fake.violations`.
"""

import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlsplit

import msgspec

from tests.fakes.discovery import STREAMED, Api, Method, load_api

CHUNK = "#chunk"
"""Ends the method id of a request to a resumable upload's session."""

_REASONS = {400: "invalid", 401: "authError", 403: "forbidden", 404: "notFound", 409: "conflict"} | {
    412: "conditionNotMet",
    429: "rateLimitExceeded",
    500: "internalError",
    503: "backendError",
}
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"} | {
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


class ApiRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request that came and was valid.

    `params` are the path's, `query` is typed, `body` decoded JSON (None without one) or the bytes of a media
    upload; `headers` have lower-case names. `upload` is `media`, `resumable` or, for a session, `chunk`.
    """

    method_id: str
    http_method: str
    params: dict[str, str]
    query: dict[str, Any]
    body: Any
    headers: dict[str, str]
    upload: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What a handler answers: JSON, which is checked, or bytes, of a media download or a lie, as they are."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = {}


class Refusal(Exception):  # noqa: N818 - what a handler refuses with is no fault of the fake
    """A handler refuses; `reason` is Google's word (`notFound`, `NOT_FOUND`), else the status has one."""

    def __init__(self, status: int, message: str, reason: str = "", details: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.details = list(details)


class Violation(msgspec.Struct, frozen=True):
    """What a document does not allow, in which method (or path)."""

    where: str
    what: str


class _Fault(msgspec.Struct):
    status: int
    times: int
    reason: str
    message: str
    after: bool


Handler = Callable[[ApiRequest], Answer]
Hook = Callable[[Literal["before", "after"], ApiRequest], None]


class GoogleRest:
    """Serves the APIs named by their discovery documents, such as `["compute.v1"]`, while it is entered.

    Handlers run one at a time. `hook` is called before and after each; what it raises loses the answer.
    """

    def __init__(self, apis: Sequence[str]) -> None:
        self.apis = {api.name: api for api in map(load_api, apis)}
        self.calls: list[ApiRequest] = []
        self.violations: list[Violation] = []
        self.hook: Hook | None = None
        self.token: str | None = None
        """With a token, requests that do not bear it are answered with 401."""
        self._handlers: dict[str, Handler] = {}
        self._faults: dict[str, list[_Fault]] = {}
        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def handle(self, method_id: str) -> Callable[[Handler], Handler]:
        """Register a handler for a method by its id, such as `compute.instances.insert`."""
        api = self.apis[method_id.partition(".")[0]]
        assert method_id.removesuffix(CHUNK) in api.ids, f"{api.name} has no method {method_id}"

        def register(handler: Handler) -> Handler:
            self._handlers[method_id] = handler
            return handler

        return register

    def fail(
        self,
        method_id: str,
        status: int,
        *,
        times: int = 1,
        reason: str = "",
        message: str = "",
        after: bool = False,
    ) -> None:
        """Answer the next calls with an error; status 0 closes the connection without an answer.

        The method id `*` stands for any. With `after`, the call has its effect and only its answer is lost.
        """
        self._faults.setdefault(method_id, []).append(_Fault(status, times, reason, message, after))

    def called(self, method_id: str) -> list[ApiRequest]:
        """Return the calls of one method."""
        return [call for call in self.calls if call.method_id == method_id]

    def answer(self, http_method: str, target: str, headers: dict[str, str], raw: bytes) -> Answer | None:
        """Answer one request; None closes the connection."""
        parts = urlsplit(target)
        found = self._route(http_method, parts.path)
        if isinstance(found, Answer):
            return found
        api, method, params = found
        try:
            request = self._read(api, method, params, parts.query, headers, raw, http_method)
        except Refusal as refusal:
            self.violations.append(Violation(method.id, refusal.message))
            return _error(api.name, refusal)
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            return _error(api.name, Refusal(401, "Request had invalid authentication credentials."))
        with self._lock:
            self.calls.append(request)
            fault = self._fault(request.method_id)
        try:
            self._call_hook("before", request)
            if fault is not None and not fault.after:
                return self._failed(api, fault)
            answer = self._run(api, method, request)
            self._call_hook("after", request)
        except ConnectionError:
            return None
        return answer if fault is None else self._failed(api, fault)

    def _route(self, http_method: str, path: str) -> tuple[Api, Method, dict[str, str]] | Answer:
        candidates = []
        for api in self.apis.values():
            for method in api.methods:
                verb = "PUT" if method.upload and http_method == "PUT" else method.http_method
                if verb == http_method and (params := method.params_of(path)) is not None:
                    candidates.append((api, method, params))
        good = [one for one in candidates if not one[1].mismatch(one[2])]
        if good:
            # where a path is two methods, the one with more of the path in its name, and one that is served
            return max(good, key=lambda one: (one[1].id in self._handlers, one[1].weight))
        if candidates:
            api, method, params = max(candidates, key=lambda one: one[1].weight)
            wrong = f"Invalid value for field in path: {method.mismatch(params)}"
            self.violations.append(Violation(method.id, wrong))
            return _error(api.name, Refusal(400, wrong))
        self.violations.append(Violation(f"{http_method} {path}", "no method has this path"))
        return _error(next(iter(self.apis)), Refusal(404, f"no method for {http_method} {path}"))

    def _read(
        self,
        api: Api,
        method: Method,
        params: dict[str, str],
        query_text: str,
        headers: dict[str, str],
        raw: bytes,
        http_method: str,
    ) -> ApiRequest:
        given = parse_qs(query_text, keep_blank_values=True)
        session = given.pop("upload_id", [""])[0] if method.upload else ""
        typed, wrong = api.query(method, given)
        if session:
            typed["upload_id"] = session
        elif method.upload and http_method == "PUT":
            wrong.append("a session of an upload needs its upload_id")
        if wrong:
            raise Refusal(400, "; ".join(wrong))
        upload = ("chunk" if session else str(typed.get("uploadType", ""))) if method.upload else ""
        body: Any = raw
        if upload == "":
            body = self._json(api, method, method.request, headers, raw)
        elif upload == "resumable":
            body = self._json(api, method, method.request, headers, raw) if raw else None
        elif upload not in {"media", "chunk"}:
            raise Refusal(400, f"uploadType {upload!r} is not served here")
        return ApiRequest(
            method_id=method.id + (CHUNK if session else ""),
            http_method=http_method,
            params=params,
            query=typed,
            body=body,
            headers=headers,
            upload=upload,
        )

    def _json(self, api: Api, method: Method, schema: str, headers: dict[str, str], raw: bytes) -> object:
        if not raw:
            if schema:
                missing = api.body_problems(schema, {}, method.id)
                if missing:
                    raise Refusal(400, "; ".join(missing))
            return None
        if not schema:
            raise Refusal(400, f"{method.id} takes no body, got {raw[:80]!r}")
        if not headers.get("content-type", "").startswith("application/json"):
            raise Refusal(400, f"content type {headers.get('content-type')!r} is not JSON")
        try:
            body = msgspec.json.decode(raw)
        except (msgspec.DecodeError, ValueError) as error:
            raise Refusal(400, f"Invalid JSON payload received: {error}") from error
        problems = api.body_problems(schema, body, method.id)
        if problems:
            raise Refusal(400, "; ".join(problems))
        return body

    def _fault(self, method_id: str) -> _Fault | None:
        waiting = self._faults.get(method_id) or self._faults.get("*")
        if not waiting:
            return None
        fault = waiting[0]
        fault.times -= 1
        if fault.times <= 0:
            waiting.pop(0)
        return fault

    def _failed(self, api: Api, fault: _Fault) -> Answer | None:
        if fault.status == 0:
            return None
        message = fault.message or "a fault that the test asked for"
        return _error(api.name, Refusal(fault.status, message, fault.reason))

    def _run(self, api: Api, method: Method, request: ApiRequest) -> Answer:
        handler = self._handlers.get(request.method_id)
        if handler is None:
            self.violations.append(Violation(request.method_id, "nobody serves this method"))
            return _error(api.name, Refusal(501, f"{request.method_id} is not served here"))
        try:
            with self._lock:
                answer = handler(request)
        except Refusal as refusal:
            return _error(api.name, refusal)
        if answer.status < 300 and not isinstance(answer.body, bytes):
            wrong = self._answer_problems(api, method, answer)
            if wrong:
                self.violations.append(Violation(request.method_id, f"the fake answered: {'; '.join(wrong)}"))
                return _error(api.name, Refusal(500, f"the fake's answer is wrong: {'; '.join(wrong)}"))
        return answer

    def _answer_problems(self, api: Api, method: Method, answer: Answer) -> list[str]:
        if method.upload and answer.body is None:
            return []
        if not method.response:
            return [] if answer.body is None else [f"{method.id} answers nothing"]
        parts = answer.body if method.id in STREAMED else [answer.body]
        if not isinstance(parts, list):
            return ["an answer that is streamed is a list"]
        return [problem for part in parts for problem in api.body_problems(method.response, part)]

    def _call_hook(self, phase: Literal["before", "after"], request: ApiRequest) -> None:
        if self.hook is not None:
            self.hook(phase, request)


def _error(api: str, refusal: Refusal) -> Answer:
    error: dict[str, Any] = {"code": refusal.status, "message": refusal.message}
    if api in {"compute", "storage"}:
        reason = refusal.reason or _REASONS.get(refusal.status, "unknown")
        error["errors"] = [{"message": refusal.message, "domain": "global", "reason": reason}]
    else:
        error["status"] = refusal.reason or _STATUSES.get(refusal.status, "UNKNOWN")
    if refusal.details:
        error["details"] = refusal.details
    return Answer(refusal.status, {"error": error})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about; anything else is a fault of the fake."""


def _handler(fake: GoogleRest) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                answer = fake.answer(self.command, self.path, headers, raw)
            except Exception as error:  # noqa: BLE001 - a fault of a handler must fail the test, not hang it
                fake.violations.append(
                    Violation(f"{self.command} {self.path}", f"the fake failed: {error!r}")
                )
                answer = Answer(500, {"error": {"code": 500, "message": f"the fake failed: {error!r}"}})
            if answer is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._send(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815 - names of the base class

        def _send(self, answer: Answer) -> None:
            is_raw = isinstance(answer.body, bytes)
            body = b"" if answer.body is None else answer.body if is_raw else msgspec.json.encode(answer.body)
            kind = "application/octet-stream" if is_raw else "application/json; charset=UTF-8"
            self.send_response(answer.status)
            given = {name.lower() for name in answer.headers}
            if body and "content-type" not in given:
                self.send_header("Content-Type", kind)
            if answer.status != 204 and "content-length" not in given:
                self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self._headers_buffer.append(b"\r\n")
            self.wfile.write(b"".join(self._headers_buffer) + body)  # one segment: no wait for a delayed ack
            self._headers_buffer = []

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    return Handler
