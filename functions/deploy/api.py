"""The HTTP API of deployments, free of any cloud: routes, who may use them, bodies and status codes.

openapi.yaml describes it. A request is answered in this order: 1. Is there such a route. 2. Whose token is
it (401). 3. Does any grant know the caller, before anything of the body is read (403). 4. Is the request one
(400, 413, 422). 5. May the caller do this with this app (403), before anybody is told whether it exists.
6. The service's answer.

One path is for guests, which have no token of an issuer: they show the word of their deployment, and what
they say is kept and decides nothing (`functions.deploy.progress`).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs

import msgspec

from functions.deploy import views
from functions.deploy.cloud import DeniedError
from functions.deploy.grants import Claims, Grants, Verb, caller
from functions.deploy.record import Deployment
from functions.deploy.request import MAX_BODY_BYTES, read_rule, read_upload
from functions.deploy.service import MAX_CURSOR, MAX_PAGE, DeploymentService
from functions.deploy.store import ConflictError, NotFoundError
from functions.lambda_event import HttpRequest
from shared.errors import ConfigError, DstackError, InvalidEvidence, PolicyDenied, ProtocolError

CONTENT_TYPE: Final = "application/json; charset=utf-8"
RETRY_AFTER: Final = 5
"""Seconds that a caller is asked to wait where a store, queue or cloud is busy or failing."""

LOG_PAGE: Final = 256 << 10
"""Bytes of console text in one answer: as JSON they may take six times as much, a gateway passes 6 MiB."""

_NAME: Final = r"([^/]{1,80})"
_ROOT: Final = "/v1/deployments"
_PROGRESS: Final = re.compile(r"/v1/deployments/([^/]{1,80})/progress/([^/]{1,128})")
_MAX_QUERY: Final = 4096
_MAX_DIGITS: Final = 10

Report = Callable[[Mapping[str, Any]], object]
"""Takes the facts of one answered request, for the log."""

Authenticate = Callable[[], Claims]
"""Returns the claims of the request's token, verified. Raises `InvalidEvidence`, `UnavailableError`."""


class Answer(msgspec.Struct, frozen=True):
    """What goes back: status, body and headers; a 304 has no body."""

    status: int
    body: Mapping[str, Any] | None
    headers: Mapping[str, str] = {}

    def encode(self) -> bytes:
        """Return the body as JSON."""
        return b"" if self.body is None else msgspec.json.encode(self.body)


class _Call(msgspec.Struct, frozen=True):
    """One request, as its handler gets it: `name` is the path's, empty where it has none."""

    name: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    claims: Claims

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def who(self) -> str:
        return caller(self.claims)

    def number(self, name: str, default: int, least: int, most: int) -> int:
        text = self.query.get(name, "")
        if not text:
            return default
        # its length is bounded first: what is looked at must be the number that is used
        is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
        if not is_number or not least <= int(text) <= most:
            _refuse("query", f"{name} is {text[:20]!a}, expected a number from {least} to {most}")
        return int(text)

    def place(self, name: str) -> str:
        """Return where to read on: no store takes a key of more than a kilobyte."""
        text = self.query.get(name, "")
        if len(text) > MAX_CURSOR or not text.isascii() or (text and not text.isprintable()):
            _refuse("cursor", f"{name} is none that was handed out")
        return text


class DeployApi:
    """Answers requests over a service, under grants. `report` is told of each request once."""

    def __init__(self, service: DeploymentService, report: Report = lambda _: None) -> None:
        self._service = service
        self._report = report

    def handle(self, request: HttpRequest, grants: Grants, authenticate: Authenticate) -> Answer:
        """Answer one request; header names come in any case."""
        told = _PROGRESS.fullmatch(request.path)
        # the word of a deployment is for its guests alone
        path = request.path if told is None else request.path[: told.start(2)]
        facts: dict[str, Any] = {"method": request.method, "path": path[:200]}
        try:
            if told is None:
                answer = self._route(request, grants, authenticate, facts)
            else:
                answer = self._take_progress(request, told[1], told[2])
        except DstackError as error:
            answer = refused(error)
            facts |= {"code": error.code, "message": error.message}
        self._report({**facts, "status": answer.status})
        return answer

    def _route(
        self, request: HttpRequest, grants: Grants, authenticate: Authenticate, facts: dict[str, Any]
    ) -> Answer:
        methods, name = _methods(request.path)
        if not methods:
            return _answer_error(404, "deploy.route", "there is no such path")
        if request.method not in methods:
            allowed = ", ".join(sorted(methods))
            return _answer_error(405, "deploy.method", f"the path takes {allowed}", {"Allow": allowed})
        verb, handler = methods[request.method]
        claims = authenticate()
        facts |= {"verb": verb, "caller": caller(claims)}
        if not grants.knows(claims):
            # the reason is for whoever made the grants; a stranger learns nothing of them
            facts["why"] = grants.decide(claims, verb, name).why
            raise PolicyDenied("deploy.forbidden", "no grant is for this caller")
        call = _Call(name, _query(request.query), _lower(request.headers), request.body, claims)

        def authorise(app: str) -> None:
            decision = grants.decide(claims, verb, app)
            facts.update(app=app[:80], why=decision.why)
            if not decision.allowed:
                raise PolicyDenied("deploy.forbidden", f"no grant lets this caller {verb} {app[:80]!a}")

        if name:
            authorise(name)
        return handler(self, call, grants, authorise)

    def _take_progress(self, request: HttpRequest, name: str, token: str) -> Answer:
        if request.method != "POST":
            return _answer_error(405, "deploy.method", "the path takes POST", {"Allow": "POST"})
        if not _is_json(request.headers):
            _refuse("type", "the content type is not application/json")
        self._service.take_progress(name, token, request.body)
        return Answer(204, None)

    # ---- handlers ----

    def _create(self, call: _Call, _: Grants, authorise: Callable[[str], None]) -> Answer:
        upload = read_upload(_json_body(call))
        authorise(upload.name)
        return _accepted(self._service.create(upload, key=call.key, caller=call.who))

    def _redeploy(self, call: _Call, _: Grants, __: object) -> Answer:
        upload = read_upload(_json_body(call), call.name)
        return _accepted(self._service.redeploy(upload, key=call.key, caller=call.who))

    def _list(self, call: _Call, grants: Grants, _: object) -> Answer:
        after, limit = call.place("after"), call.number("limit", 100, 1, MAX_PAGE)
        held = grants.held(call.claims, "read")
        shown: list[Deployment] = []
        more = bool(held)
        # a page's end is a name: it must be one that the caller may read, so what others have is passed over
        while more and len(shown) <= limit:
            page = self._service.list(after, MAX_PAGE)
            shown += [one for one in page.deployments if any(grant.covers(one.name) for grant in held)]
            after, more = page.after, bool(page.after)
        more = len(shown) > limit
        shown = shown[:limit]
        listed = [views.summary(one) for one in shown]
        return Answer(200, {"deployments": listed, "after": shown[-1].name if more else ""})

    def _get(self, call: _Call, *_: object) -> Answer:
        found = self._service.get(call.name)
        tag = views.entity_tag(found)
        if call.headers.get("if-none-match") == tag:
            return Answer(304, None, {"ETag": tag})
        return Answer(200, views.whole(found), {"ETag": tag})

    def _events(self, call: _Call, *_: object) -> Answer:
        limit = call.number("limit", 100, 1, MAX_PAGE)
        page = self._service.events(call.name, call.place("after"), limit)
        return Answer(200, {"events": [views.event(one) for one in page.events], "after": page.after})

    def _logs(self, call: _Call, *_: object) -> Answer:
        limit = call.number("limit", LOG_PAGE, 1, LOG_PAGE)
        page = self._service.logs(call.name, call.query.get("cursor", ""), limit)
        return Answer(200, {"text": page.text, "cursor": page.cursor})

    def _machine(self, call: _Call, *_: object) -> Answer:
        return Answer(200, views.machine(self._service.machine(call.name)))

    def _stop(self, call: _Call, *_: object) -> Answer:
        return _accepted(self._service.stop(call.name, key=call.key, caller=call.who))

    def _start(self, call: _Call, *_: object) -> Answer:
        return _accepted(self._service.start(call.name, key=call.key, caller=call.who))

    def _retry(self, call: _Call, *_: object) -> Answer:
        return _accepted(self._service.retry(call.name, key=call.key, caller=call.who))

    def _remove(self, call: _Call, *_: object) -> Answer:
        return _accepted(self._service.remove(call.name, key=call.key, caller=call.who))

    def _firewall(self, call: _Call, *_: object) -> Answer:
        rules = self._service.firewall(call.name)
        return Answer(200, {"rules": [views.rule(one) for one in rules]})

    def _set_firewall(self, call: _Call, *_: object) -> Answer:
        rule = self._service.set_firewall(call.name, read_rule(_json_body(call)), caller=call.who)
        return Answer(200, views.rule(rule))

    def _clear_firewall(self, call: _Call, *_: object) -> Answer:
        port = call.number("port", 0, 1, 65535)
        protocol = call.query.get("protocol", "tcp")
        return Answer(
            200, {"removed": self._service.clear_firewall(call.name, protocol, port, caller=call.who)}
        )

    ROUTES: Final[Mapping[str, Mapping[str, tuple[Verb, Callable[..., Answer]]]]] = {
        "": {"POST": ("deploy", _create), "GET": ("read", _list)},
        "/{name}": {"GET": ("read", _get), "PUT": ("deploy", _redeploy), "DELETE": ("remove", _remove)},
        "/{name}/events": {"GET": ("read", _events)},
        "/{name}/logs": {"GET": ("logs", _logs)},
        "/{name}/machine": {"GET": ("read", _machine)},
        "/{name}/stop": {"POST": ("stop", _stop)},
        "/{name}/start": {"POST": ("start", _start)},
        "/{name}/retry": {"POST": ("deploy", _retry)},
        "/{name}/firewall": {
            "GET": ("read", _firewall),
            "PUT": ("firewall", _set_firewall),
            "DELETE": ("firewall", _clear_firewall),
        },
    }
    """Paths below /v1/deployments: the verb that each method needs, and what answers it."""


_PATTERNS: Final = [
    (re.compile(re.escape(_ROOT) + path.replace("{name}", _NAME)), methods)
    for path, methods in DeployApi.ROUTES.items()
]

_STATUS: Final = {
    "deploy.request.size": 413,
    "deploy.request.env_size": 413,
    "deploy.request.json.size": 413,
    "deploy.request.type": 400,
    "deploy.request.base64": 400,
    "deploy.request.key": 400,
    "deploy.request.query": 400,
    "deploy.request.cursor": 400,
    "gcp.logs.cursor": 400,
    "nitro.logs.cursor": 400,
    "deploy.progress.rate": 429,
    "deploy.blob": 503,
    "deploy.cloud": 422,
}
"""Of codes that differ from others of their kind."""


def status_of(error: DstackError) -> int:
    """Return the HTTP status of an error.

    The caller's mistakes are 4xx. What somebody has to change first, and a hint says what, is 409: the same
    request fails again. What is busy or failing is 503, with a Retry-After where it may pass by itself.
    """
    if error.code in _STATUS:
        return _STATUS[error.code]
    if error.code.startswith("deploy.request.json."):
        return 400
    if error.code.startswith(("deploy.request.", "project.")):
        return 422
    for kind, status in (
        (InvalidEvidence, 401),
        (PolicyDenied, 403),
        (NotFoundError, 404),
        (ConflictError, 409),
        (DeniedError, 409),
    ):
        if isinstance(error, kind):
            return status
    return 503


def refused(error: DstackError) -> Answer:
    """Return the answer that an error becomes."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    if status == 503 and not isinstance(error, ConfigError):
        headers["Retry-After"] = str(RETRY_AFTER)
    hint = error.hint if isinstance(error, DeniedError) else _HINTS.get(error.code, "")
    return _answer_error(status, error.code, error.message, headers, hint)


def unready(error: DstackError) -> Answer:
    """Return the answer where nobody can be let in yet, for settings or grants that cannot be read.

    Nobody showed a token so far: names of buckets, and what to grant to whom, are for the log alone.
    """
    passes = not isinstance(error, ConfigError | DeniedError)
    return _answer_error(
        503,
        error.code,
        "the function cannot tell who may do what: its log says why",
        {"Retry-After": str(RETRY_AFTER)} if passes else {},
    )


_HINTS: Final = {
    "deploy.exists": 'send "replace": true, or PUT to the deployment\'s own path',
    "deploy.busy": "poll the deployment until it is settled, then send the request again",
    "deploy.request.plaintext_env": "encrypt it with `dstack-cloud` and send encrypted_env and env_names",
    "deploy.request.anywhere": 'send "anywhere": true',
    "deploy.forbidden": "the function's log says what each grant missed",
}


def _answer_error(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, hint: str = ""
) -> Answer:
    body = {"error": message, "code": code} | ({"hint": hint} if hint else {})
    return Answer(status, body, headers or {})


def _accepted(deployment: Deployment) -> Answer:
    """Answer 202 where a runner has something to do now, and 200 where all is as it was asked for."""
    headers = {"Location": f"{_ROOT}/{deployment.name}", "ETag": views.entity_tag(deployment)}
    return Answer(200 if deployment.is_resting else 202, views.whole(deployment), headers)


def _methods(path: str) -> tuple[Mapping[str, tuple[Verb, Callable[..., Answer]]], str]:
    for pattern, methods in _PATTERNS:
        if match := pattern.fullmatch(path):
            return methods, match[1] if match.re.groups else ""
    return {}, ""


def _json_body(call: _Call) -> bytes:
    if not _is_json(call.headers):
        _refuse("type", "the content type is not application/json")
    if len(call.body) > MAX_BODY_BYTES:
        _refuse("size", f"the body has more than {MAX_BODY_BYTES} bytes")
    return call.body


def _is_json(headers: Mapping[str, str]) -> bool:
    kind = _lower(headers).get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"


def _query(text: str) -> dict[str, str]:
    if len(text) > _MAX_QUERY:
        _refuse("query", f"the query has {len(text)} characters, expected at most {_MAX_QUERY}")
    try:
        values = parse_qs(text, keep_blank_values=True, max_num_fields=16, errors="strict")
    except ValueError:
        _refuse("query", "the query is malformed")
    if repeated := [name for name, given in values.items() if len(given) > 1]:
        _refuse("query", f"{repeated[0][:40]!a} is given twice")
    return {name: given[0] for name, given in values.items()}


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _refuse(code: str, message: str) -> NoReturn:
    raise ProtocolError(f"deploy.request.{code}", message)
