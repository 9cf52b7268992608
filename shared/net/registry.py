"""Pulling an image from a registry by digest (spec measurement 3.3, OCI distribution API).

A registry is believed in nothing: what it sends is hashed as it arrives, and bounded by what was announced.
It may send us elsewhere, for a token or for a blob. We then go over https only, to public addresses only, and
a blob's new host never sees our token.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

import msgspec

from shared.errors import ConfigError, ProtocolError, StorageError, UnavailableError
from shared.measurement.image_reference import ImageReference, format_digest
from shared.measurement.oci import INDEXES, MANIFESTS, MAX_DOCUMENT, Descriptor
from shared.net.dialer import Dialer, DirectDialer
from shared.net.fetch import HttpClient
from shared.net.public_dialer import PublicDialer
from shared.net.response import Response
from shared.strict_json import decode_json

DEFAULT_TIMEOUT = 900.0
"""Seconds for one blob; a function may run no longer."""

MAX_REDIRECTS = 5
MAX_TOKEN = 16 * 1024
"""Of a token in bytes, for a header line; large ones are JWTs of 4 KB."""

_MAX_TOKEN_ANSWER = 64 * 1024
_MAX_LOCATION = 8 * 1024  # signed URLs of object stores have 2 KB
_TOKEN_TIMEOUT = 30.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHALLENGE = re.compile(r" *(?i:(Bearer|Basic)) +(.*)", re.DOTALL)
_PARAMETER = re.compile(r'([A-Za-z_]+)="([^"\\\x00-\x1f]*)"(?: *, *|$)')
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Credentials(msgspec.Struct, frozen=True):
    """A user's name and password or access token, as HTTP's Basic scheme sends them."""

    username: str
    password: str

    def __repr__(self) -> str:  # a log must not have the password
        return f"Credentials({self.username!r})"

    @property
    def header(self) -> str:
        """The value of the header Authorization."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class RegistryClient:
    """One repository of one registry. Not for sharing between threads.

    `ca_roots` is PEM of the only roots that TLS may chain to, None for the system's. Plain http is spoken
    with `plain_loopback` alone, and only to this machine.
    """

    def __init__(
        self,
        reference: ImageReference,
        *,
        credentials: Credentials | None = None,
        ca_roots: bytes | None = None,
        plain_loopback: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        dialer: Dialer | None = None,
    ) -> None:
        is_plain = plain_loopback and _is_loopback(reference.api_host)
        scheme = "http" if is_plain else "https"
        self._base = f"{scheme}://{reference.api_host}/v2/{reference.repository}"
        self._repository = reference.repository
        self._credentials = credentials
        self._is_plain = is_plain
        self._timeout = timeout
        dialer = DirectDialer() if dialer is None else dialer
        self._home = HttpClient(dialer, ca_roots)
        self._away = HttpClient(PublicDialer(dialer, loopback=is_plain), ca_roots)
        self._authorization: str | None = None

    def manifest(self, digest: bytes) -> tuple[Descriptor, bytes]:
        """Return the manifest or index of that digest (32 bytes), with the media type the registry gives it.

        Raises `ProtocolError`: `registry.blob` (another digest, or too long), `registry.media_type`,
        `registry.redirect`, `registry.challenge`, `registry.token`, `registry.status`; `ConfigError`:
        `registry.unauthorized`, `registry.missing`; `UnavailableError("registry.status")`;
        `PolicyDenied("net.address.private")`; what the HTTP client raises.
        """
        raw = bytearray()
        check = _Checked(digest, MAX_DOCUMENT, raw.extend)
        accept = ", ".join(sorted(INDEXES | MANIFESTS))
        answer = self._get(f"/manifests/{format_digest(digest)}", check, MAX_DOCUMENT, accept)
        check.finish()
        media_type = answer.headers.get("content-type", "").partition(";")[0].strip()
        if media_type not in INDEXES | MANIFESTS:
            raise ProtocolError(
                "registry.media_type", f"registry gives the image the media type {media_type[:80]!r}"
            )
        return Descriptor(media_type, digest, len(raw)), bytes(raw)

    def blob(self, descriptor: Descriptor, sink: Callable[[bytes], object]) -> None:
        """Hand a blob to `sink` piece by piece, never more than its size; raises what `manifest` raises.

        `sink` has had parts of it when this raises, and all of it when the digest is wrong.
        `StorageError("registry.storage")` where `sink` raises `OSError`.
        """
        check = _Checked(descriptor.digest, descriptor.size, sink, exact=True)
        self._get(f"/blobs/{format_digest(descriptor.digest)}", check, descriptor.size)
        check.finish()

    def _get(self, path: str, sink: "_Checked", max_bytes: int, accept: str = "*/*") -> Response:
        answer = self._follow(path, sink, max_bytes, accept)
        if answer.status == 401:
            self._authorization = self._authorize(answer.headers.get("www-authenticate", ""))
            answer = self._follow(path, sink, max_bytes, accept)
        if answer.status != 200:
            _refuse_status(answer.status, self._base + path)
        return answer

    def _follow(self, path: str, sink: "_Checked", max_bytes: int, accept: str) -> Response:
        """Send a request where it leads; the header Authorization stays with the registry's own origin."""
        url = self._base + path
        home = _origin(urlsplit(url))
        is_home = True
        for _ in range(MAX_REDIRECTS + 1):
            headers = {"Accept": accept}
            if is_home and self._authorization is not None:
                headers["Authorization"] = self._authorization
            client = self._home if is_home else self._away
            answer = client.download(url, sink, max_bytes=max_bytes, timeout=self._timeout, headers=headers)
            if answer.status not in _REDIRECTS:
                if answer.status == 401 and not is_home:
                    _refuse_status(403, url)  # it is not the registry that asks, so it gets nothing
                return answer
            url = self._next(url, answer.headers.get("location", ""))
            # once away, always away: whoever we came from chose this url
            is_home = is_home and _origin(urlsplit(url)) == home
        raise ProtocolError("registry.redirect", f"registry redirects more than {MAX_REDIRECTS} times")

    def _next(self, url: str, location: str) -> str:
        if not location or len(location) > _MAX_LOCATION or not _TOKEN.fullmatch(location):
            raise ProtocolError("registry.redirect", "registry redirects to nothing, or to no url")
        return self._checked_url(url, location, "registry.redirect")

    def _checked_url(self, base: str, url: str, code: str) -> str:
        """Return a url that a server named at `base`, if it is one that we go to."""
        try:
            parts = urlsplit(urljoin(base, url))
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise ProtocolError(code, f"registry names the malformed url {url[:80]!r}") from error
        is_plain = parts.scheme == "http" and self._is_plain and _is_loopback(parts.netloc)
        if (parts.scheme != "https" and not is_plain) or not host or "@" in parts.netloc:
            raise ProtocolError(code, f"registry names {url[:80]!r}, expected an https url without a user")
        return parts._replace(fragment="").geturl()

    def _authorize(self, challenge: str) -> str:
        """Answer a challenge: return the header that the registry wants to see."""
        match = _CHALLENGE.match(challenge)
        if match is None:
            raise ProtocolError(
                "registry.challenge", f"registry asks for {challenge[:80]!r}, expected Bearer or Basic"
            )
        if match[1].lower() == "basic":
            if self._credentials is None:
                raise ConfigError("registry.unauthorized", "registry asks for a user and password, got none")
            return self._credentials.header
        parameters: dict[str, str] = {}
        at = 0
        while parameter := _PARAMETER.match(match[2], at):
            parameters.setdefault(parameter[1].lower(), parameter[2])
            at = parameter.end()
        return f"Bearer {self._token(parameters.get('realm', ''), parameters.get('service', ''))}"

    def _token(self, realm: str, service: str) -> str:
        url = self._checked_url("", realm, "registry.challenge")
        # the scope is ours to say: the registry's own words could ask for more than we need
        query = {"scope": f"repository:{self._repository}:pull"}
        if service:
            query["service"] = service
        url += ("&" if urlsplit(url).query else "?") + urlencode(query)
        is_home = _origin(urlsplit(url)) == _origin(urlsplit(self._base))
        headers = {} if self._credentials is None else {"Authorization": self._credentials.header}
        answer = (self._home if is_home else self._away).request(
            "GET", url, headers=headers, timeout=_TOKEN_TIMEOUT, max_bytes=_MAX_TOKEN_ANSWER
        )
        if answer.status != 200:
            _refuse_status(answer.status, realm)
        document = decode_json(
            answer.body, what="token answer", code="registry.token", max_bytes=_MAX_TOKEN_ANSWER
        )
        fields = document if isinstance(document, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        if not isinstance(token, str) or len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise ProtocolError("registry.token", "token answer has no token that fits a header")
        return token


class _Checked:
    """A sink that passes on what is within a size, and knows its digest."""

    def __init__(
        self, digest: bytes, size: int, sink: Callable[[bytes], object], *, exact: bool = False
    ) -> None:
        self._expected = digest
        self._size = size
        self._sink = sink
        self._exact = exact
        self._digest = hashlib.sha256()
        self._got = 0

    def __call__(self, piece: bytes) -> None:
        self._got += len(piece)
        self._digest.update(piece)
        try:
            self._sink(piece)
        except OSError as error:  # not the server's: the client would take it for a broken connection
            raise StorageError("registry.storage", f"cannot write a blob: {error.strerror}") from error

    def finish(self) -> None:
        name = format_digest(self._expected)
        if self._exact and self._got != self._size:
            raise ProtocolError("registry.blob", f"{name} has {self._got} bytes, expected {self._size}")
        if not hmac.compare_digest(self._digest.digest(), self._expected):
            raise ProtocolError("registry.blob", f"got sha256:{self._digest.hexdigest()}, expected {name}")


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)


def _is_loopback(host: str) -> bool:
    """Tell whether a host, with or without a port, is this machine by its name alone."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _refuse_status(status: int, url: str) -> NoReturn:
    shown = url[:200]
    if status in {401, 403}:
        raise ConfigError("registry.unauthorized", f"got status {status} for {shown}: check the credentials")
    if status == 404:
        raise ConfigError("registry.missing", f"registry does not have {shown}")
    if status == 429 or status >= 500:
        raise UnavailableError("registry.status", f"got status {status} for {shown}")
    raise ProtocolError("registry.status", f"got status {status} for {shown}, expected 200")
