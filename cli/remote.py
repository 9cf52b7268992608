"""Deployments behind a deploy function's HTTP API."""

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from cli.deployments import Tell, View, wait_for
from functions.deploy.record import Step
from functions.deploy.request import RuleBody, Upload
from shared.errors import ConfigError, DstackError, ExitCode, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient

TOKEN: Final = "DSTACK_CLOUD_TOKEN"  # noqa: S105 - the name of a variable
AUDIENCE: Final = "DSTACK_CLOUD_AUDIENCE"
GITHUB_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
GITHUB_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable

TIMEOUT: Final = 60
MAX_ANSWER: Final = 8 << 20
TRIES: Final = 6
"""Of a request that the API answers with 503: it may come from a queue or a cloud that is busy."""

_MAX_PAUSE: Final = 30


class ApiError(DstackError):
    """The API's own error: its code, its sentence, and the hint that came with it."""

    def __init__(self, code: str, message: str, hint: str, status: int) -> None:
        super().__init__(code, message)
        self.hint = hint
        self.status = status
        self.exit_code = _EXITS.get(status, ExitCode.FAILED)


_EXITS: Final = {
    400: ExitCode.USAGE,
    401: ExitCode.REFUSED,
    403: ExitCode.REFUSED,
    404: ExitCode.USAGE,
    413: ExitCode.USAGE,
    422: ExitCode.USAGE,
}


class RemoteDeployments:
    """See `cli.deployments.Deployments`. `token` returns a bearer token, anew for each request."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        http: HttpClient,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._url = check_url(url)
        self._token = token
        self._http = http
        self._sleep = sleep
        self._has_answered = False

    def deploy(self, upload: Upload, key: str) -> View:
        """See `Deployments`."""
        return self._call("POST", "", encode_upload(upload), key=key)

    def get(self, name: str) -> View:
        """See `Deployments`."""
        return self._call("GET", _path(name))

    def list_all(self) -> Iterator[View]:
        """See `Deployments`."""
        after = ""
        while True:
            page = self._call("GET", "", query={"after": after} if after else {})
            yield from _items(page, "deployments")
            if not (after := _text(page, "after")):
                return

    def machine(self, name: str) -> View:
        """See `Deployments`."""
        return self._call("GET", _path(name, "machine"))

    def logs(self, name: str, cursor: str) -> tuple[str, str]:
        """See `Deployments`."""
        page = self._call("GET", _path(name, "logs"), query={"cursor": cursor} if cursor else {})
        return _text(page, "text"), _text(page, "cursor")

    def act(self, name: str, verb: str, key: str) -> View:
        """See `Deployments`."""
        if verb == "remove":
            return self._call("DELETE", _path(name), key=key)
        return self._call("POST", _path(name, verb), key=key)

    def firewall(self, name: str) -> list[View]:
        """See `Deployments`."""
        return _items(self._call("GET", _path(name, "firewall")), "rules")

    def set_firewall(self, name: str, rule: RuleBody) -> View:
        """See `Deployments`."""
        return self._call("PUT", _path(name, "firewall"), msgspec.json.encode(rule))

    def clear_firewall(self, name: str, protocol: str, port: int) -> bool:
        """See `Deployments`."""
        query = {"protocol": protocol, "port": str(port)}
        return bool(self._call("DELETE", _path(name, "firewall"), query=query).get("removed"))

    def follow(
        self, name: str, tell: Tell, *, timeout: float | None, stop_at: frozenset[Step] = frozenset()
    ) -> View:
        """See `Deployments`."""
        return wait_for(self, name, tell, timeout=timeout, stop_at=stop_at, sleep=self._sleep)

    def events(self, name: str, after: str) -> tuple[list[View], str]:
        """See `Deployments`."""
        page = self._call("GET", _path(name, "events"), query={"after": after} if after else {})
        return _items(page, "events"), _text(page, "after")

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, str] | None = None,
        key: str = "",
    ) -> View:
        url = f"{self._url}/v1/deployments{path}" + (f"?{urlencode(query)}" if query else "")
        pause = 1.0
        for attempt in range(1, TRIES + 1):
            headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}
            if body is not None:
                headers["Content-Type"] = "application/json"
            if key:
                headers["Idempotency-Key"] = key
            try:
                answer = self._http.request(method, url, body, headers, timeout=TIMEOUT, max_bytes=MAX_ANSWER)
            except UnavailableError:
                # one that never answered may be no api; of one that did, a lost connection is nothing
                if not self._has_answered or attempt == TRIES:
                    raise
                self._sleep(pause)
                pause = min(2 * pause, _MAX_PAUSE)
                continue
            self._has_answered = True
            if answer.status not in {429, 502, 503, 504} or attempt == TRIES:
                break
            wait = answer.headers.get("retry-after", "")
            self._sleep(min(float(wait), _MAX_PAUSE) if wait.isascii() and wait.isdigit() else pause)
            pause = min(2 * pause, _MAX_PAUSE)
        document = _document(answer.body, answer.status)
        if answer.status not in {200, 202}:
            raise ApiError(
                _text(document, "code") or "api.status",
                _text(document, "error") or f"the api answered {answer.status}",
                _text(document, "hint"),
                answer.status,
            )
        return document


def check_url(url: str) -> str:
    """Return the API's URL without a slash at its end. Raises `ConfigError("api.url")`.

    A token travels with each request, so only this machine is spoken to without TLS.
    """
    parts = urlsplit(url)
    is_here = parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.scheme != "https" and not (parts.scheme == "http" and is_here):
        raise ConfigError("api.url", f"the api is at {url[:120]!a}, expected an https url")
    if not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigError("api.url", f"the api is at {url[:120]!a}, expected https://HOST[/PATH]")
    return url.rstrip("/")


def token_source(environ: Mapping[str, str], http: HttpClient, api: str) -> Callable[[], str]:
    """Return where a bearer token comes from: `DSTACK_CLOUD_TOKEN`, or the job's own on GitHub.

    Raises `ConfigError("api.token")` where there is neither.
    """
    if token := environ.get(TOKEN, ""):
        return lambda: token
    request, bearer = environ.get(GITHUB_URL, ""), environ.get(GITHUB_TOKEN, "")
    if not request or not bearer:
        raise ConfigError(
            "api.token",
            f"there is no token for the api: set {TOKEN}; a GitHub job needs permissions: id-token: write",
        )
    audience = environ.get(AUDIENCE, "") or api
    return lambda: _github_token(http, request, bearer, audience)


def _github_token(http: HttpClient, request: str, bearer: str, audience: str) -> str:
    """Ask GitHub for a token of this job; each is good for some minutes."""
    separator = "&" if "?" in request else "?"
    answer = http.request(
        "GET",
        f"{request}{separator}audience={quote(audience, safe='')}",
        headers={"Authorization": f"Bearer {bearer}", "Accept": "application/json"},
        timeout=TIMEOUT,
        max_bytes=1 << 16,
    )
    if answer.status != 200:
        raise UnavailableError("api.token.github", f"github answered {answer.status} for the job's token")
    token = _text(_document(answer.body, 200), "value")
    if not token:
        raise ProtocolError("api.token.github", "github's answer holds no token")
    return token


def encode_upload(upload: Upload) -> bytes:
    """Return the body that hands a project in."""
    body: dict[str, Any] = {
        "name": upload.name,
        "files": {name: _base64(content) for name, content in upload.files.items()},
        "encrypted_env": _base64(upload.encrypted_env),
        "env_names": upload.env_names,
        "replace": upload.replace,
        "wait_for_approval": upload.wait_for_approval,
        "options": msgspec.to_builtins(upload.options),
    }
    if upload.cloud is not None:
        body["cloud"] = upload.cloud
    return msgspec.json.encode(body)


def api_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the API that the environment names, or nothing."""
    return environ.get("DSTACK_CLOUD_API", "")


def _path(name: str, what: str = "") -> str:
    return f"/{quote(name, safe='')}" + (f"/{what}" if what else "")


def _document(raw: bytes, status: int) -> View:
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise ProtocolError("api.answer", f"the api answered {status} with what is no json") from error
    if not isinstance(document, dict):
        raise ProtocolError("api.answer", f"the api answered {status} with what is no object")
    return document


def _items(document: View, name: str) -> list[View]:
    found = document.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ProtocolError("api.answer", f"the api's answer has no list of {name}")
    return found


def _text(document: View, name: str) -> str:
    value = document.get(name, "")
    return value if isinstance(value, str) else ""


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
