"""One call of a Google API: a token, a bounded answer, an error that says who must act. Nothing is retried.

The exception is a 401: a token may have been revoked before its time, so it is renewed once.
"""

import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from functions.deploy.cloud import TransientCloudError
from functions.google_api.credentials import TOKEN_SECONDS, refresh_error
from functions.google_api.errors import error_of
from shared.errors import CloudError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from urllib3 import BaseHTTPResponse, PoolManager

DEFAULT_SECONDS: Final = 60.0
"""For a whole call; Google's own deadlines for what we call are shorter."""

CONNECT_SECONDS: Final = 10.0
MAX_ANSWER: Final = 32 << 20
"""Bytes of JSON: a page of the largest records that Firestore stores, in base64."""

MAX_ERROR: Final = 64 << 10
_PIECE: Final = 256 << 10
_POOL: Final = 16

QueryValue = str | int | bool


class Reply(msgspec.Struct, frozen=True):
    """An answer as it came; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class GoogleSession:
    """Calls with `credentials` (see `functions.google_api.credentials`), for any number of threads.

    Every method raises `TransientCloudError`, `DeniedError` or `GoogleError` as `error_of` has them,
    `TransientCloudError("gcp.unavailable")` for a connection that failed, and `CloudError("gcp.answer")` for
    an answer that is too large or is not what the API is documented to send.
    """

    def __init__(
        self,
        credentials: "Credentials",
        *,
        http: "PoolManager | None" = None,
        timeout: float = DEFAULT_SECONDS,
        max_bytes: int = MAX_ANSWER,
    ) -> None:
        import urllib3  # noqa: PLC0415 - heavy

        self._credentials = credentials
        self._http = http or urllib3.PoolManager(num_pools=8, maxsize=_POOL)
        self._token_http = urllib3.PoolManager(timeout=TOKEN_SECONDS)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def call(
        self,
        method: str,
        url: str,
        *,
        body: object = None,
        query: Mapping[str, QueryValue] | None = None,
        expect: Collection[int] = (),
    ) -> dict[str, Any]:
        """Send JSON and return the JSON object that comes back, empty if nothing does.

        A status in `expect` is no error; without it, every 2xx is none.
        """
        found = self._decoded(method, url, body, query, expect)
        if not isinstance(found, dict):
            raise CloudError("gcp.answer", f"{_named(method, url)} was answered with no JSON object")
        return found

    def call_list(
        self,
        method: str,
        url: str,
        *,
        body: object = None,
        query: Mapping[str, QueryValue] | None = None,
    ) -> list[dict[str, Any]]:
        """Do the same for a method that streams: the answer is a list of objects."""
        found = self._decoded(method, url, body, query, ())
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise CloudError("gcp.answer", f"{_named(method, url)} was answered with no list of objects")
        return found

    def send(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, QueryValue] | None = None,
        expect: Collection[int] = (),
    ) -> Reply:
        """Send bytes and return the whole answer."""
        deadline = time.monotonic() + self._timeout
        answer = self.stream(method, url, body=body, headers=headers, query=query, expect=expect)
        try:
            raw = self._read(answer, self._max_bytes, deadline, _named(method, url))
        finally:
            self._let_go(answer)
        return Reply(answer.status, {name.lower(): value for name, value in answer.headers.items()}, raw)

    def stream(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, QueryValue] | None = None,
        expect: Collection[int] = (),
    ) -> "BaseHTTPResponse":
        """Return an answer whose body is still to be read; whoever reads it meets urllib3's errors."""
        words = {
            name: str(value).lower() if isinstance(value, bool) else value
            for name, value in (query or {}).items()
        }
        target = f"{url}?{urlencode(words)}" if words else url
        answer = self._request(method, target, body, headers or {})
        if answer.status == 401:
            self._error_body(answer)
            self._renew()
            answer = self._request(method, target, body, headers or {})
        if answer.status in expect or (not expect and 200 <= answer.status < 300):
            return answer
        raw = self._error_body(answer)
        raise error_of(_named(method, url), answer.status, raw)

    def _decoded(
        self,
        method: str,
        url: str,
        body: object,
        query: Mapping[str, QueryValue] | None,
        expect: Collection[int],
    ) -> object:
        raw = None if body is None else msgspec.json.encode(body)
        headers = {"Accept": "application/json"} | (
            {} if raw is None else {"Content-Type": "application/json"}
        )
        reply = self.send(method, url, body=raw, headers=headers, query=query, expect=expect)
        if not reply.body:
            return {}
        try:
            return msgspec.json.decode(reply.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise CloudError("gcp.answer", f"{_named(method, url)} was answered with no JSON") from error

    def _request(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
    ) -> "BaseHTTPResponse":
        import urllib3  # noqa: PLC0415 - heavy

        try:
            return self._http.request(
                method,
                target,
                body=body,
                headers={**headers, **self._authorization(method, target)},
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, self._timeout), read=self._timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _lost(_named(method, target), error) from error

    def _authorization(self, method: str, target: str) -> dict[str, str]:
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - heavy
        from google.auth.transport.urllib3 import Request  # noqa: PLC0415 - heavy

        headers: dict[str, str] = {}
        try:
            with self._lock:
                self._credentials.before_request(Request(self._token_http), method, target, headers)
        except GoogleAuthError as error:
            raise refresh_error(error) from error
        return headers

    def _renew(self) -> None:
        from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - heavy
        from google.auth.transport.urllib3 import Request  # noqa: PLC0415 - heavy

        try:
            with self._lock:
                self._credentials.refresh(Request(self._token_http))
        except GoogleAuthError as error:
            raise refresh_error(error) from error

    def _read(self, answer: "BaseHTTPResponse", limit: int, deadline: float, what: str) -> bytes:
        import urllib3  # noqa: PLC0415 - heavy

        pieces = []
        size = 0
        try:
            while piece := answer.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise CloudError("gcp.answer", f"{what} was answered with more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise TransientCloudError("gcp.unavailable", f"{what} took more than {self._timeout} s")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _lost(what, error) from error
        return b"".join(pieces)

    def _error_body(self, answer: "BaseHTTPResponse") -> bytes:
        import urllib3  # noqa: PLC0415 - heavy

        try:
            return answer.read(MAX_ERROR)
        except (urllib3.exceptions.HTTPError, OSError):
            return b""  # the status says what matters
        finally:
            self._let_go(answer)

    @staticmethod
    def _let_go(answer: "BaseHTTPResponse") -> None:
        # what was read to its end is back in the pool already; anything else cannot be used again
        if answer.connection is not None:
            answer.close()
            answer.release_conn()


def _named(method: str, url: str) -> str:
    parts = urlsplit(url)
    return f"{method} {parts.netloc}{parts.path}"[:160]


def _lost(what: str, error: Exception) -> TransientCloudError:
    kind = type(error).__name__
    return TransientCloudError(
        "gcp.unavailable", f"{what} got no answer ({kind}: {str(error)[:120]})".rstrip(".")
    )
