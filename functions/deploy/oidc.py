"""Verifies the identity tokens that CI systems and Google's queue present (OpenID Connect, RFC 7519).

Where a gateway verified the token already (AWS), nothing of this is loaded. What is fetched, from whom, and
how often is fixed by configuration: a token can name none of it.
"""

import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from shared.errors import ConfigError, DstackError, InvalidEvidence, UnavailableError
from shared.strict_json import decode_json

if TYPE_CHECKING:
    from shared.net.fetch import HttpClient

MAX_TOKEN: Final = 16 << 10
"""Characters of a token; GitHub's have about 2 KB, GitLab's up to 4."""

MAX_KEY_ID: Final = 256
MAX_DISCOVERY: Final = 64 << 10
MAX_KEY_SET: Final = 256 << 10
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
LEEWAY: Final = 30
"""Seconds that the issuer's clock and ours may differ."""

MAX_LIFETIME: Final = 86_400
"""Seconds that a token may live; GitHub's live for minutes, GitLab's as long as a job may."""

REFRESH_AFTER: Final = 3600
"""Seconds after which keys are fetched again, so that a key that was withdrawn is not trusted for long."""

KEEP_FOR: Final = 86_400
"""Seconds for which keys serve while their issuer is not reached."""

REFETCH_AFTER: Final = 60
"""Seconds between two fetches, whoever presents keys that nobody knows."""

RETRY_AFTER: Final = 5
"""Seconds between two fetches while there are no keys at all."""

TIMEOUT: Final = 5.0

ALGORITHMS: Final = ("RS256", "ES256")
"""Signatures by a private key. With HS256 a public key would do as the secret, with `none` nothing."""

_STRIPPED: Final = ".SIGNATURE_REMOVED_BY_GOOGLE"
GOOGLE: Final = "https://accounts.google.com"
_DISCOVERY: Final = "/.well-known/openid-configuration"


class _Key(msgspec.Struct, frozen=True):
    """A public key, and the one algorithm that it is for."""

    algorithm: str
    public: Any


class TokenVerifier:
    """Verifies tokens of `issuers` for one `audience`; keys are fetched over `http`, which must check TLS.

    Safe to share between threads.
    """

    def __init__(self, issuers: Collection[str], audience: str, http: "HttpClient") -> None:
        self._keys = {issuer: IssuerKeys(issuer, http) for issuer in issuers}
        self._audience = audience

    def verify(self, token: str, now: int) -> dict[str, Any]:
        """Return the claims of a token at `now` (unix seconds).

        1. Bound it. 2. Read which algorithm, key and issuer it names. 3. Find the key among the issuer's.
        4. Check the signature. 5. Check issuer, audience and times.

        Raises `InvalidEvidence`: `deploy.token.size`, `.stripped`, `.malformed`, `.algorithm`, `.issuer`,
        `.key`, `.signature`, `.audience`, `.expired`, `.early`, `.lifetime`;
        `UnavailableError("deploy.issuer")` where the issuer's keys cannot be had.
        """
        import jwt  # noqa: PLC0415 - a tenth of a second that no other entry has to pay

        if token.endswith(_STRIPPED):
            _refuse(
                "stripped",
                "Cloud Run checked the token itself and took its signature away, so it proves nothing here:"
                " let the service be called without IAM, as the function verifies the token",
            )
        if not 0 < len(token) <= MAX_TOKEN:
            _refuse("size", f"the token has {len(token)} characters, expected 1 to {MAX_TOKEN}")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            _refuse("malformed", "the token is no signed json web token")
        algorithm = header.get("alg")
        if algorithm not in ALGORITHMS or "crit" in header:
            _refuse(
                "algorithm", f"the token is signed by {_show(algorithm)}, expected {' or '.join(ALGORITHMS)}"
            )
        issuer = claimed.get("iss")
        if not isinstance(issuer, str) or issuer not in self._keys:
            _refuse("issuer", f"the token is from {_show(issuer)}, which nothing is granted to")
        key = self._keys[issuer].get(header.get("kid"), now)
        if key.algorithm != algorithm:
            _refuse("algorithm", f"the token is signed by {algorithm}, its key is for {key.algorithm}")
        try:
            claims: dict[str, Any] = jwt.decode(token, key.public, [key.algorithm], options=_SIGNATURE_ALONE)
        except (jwt.PyJWTError, ValueError, RecursionError):
            _refuse("signature", "the token's signature does not hold")
        self._check_claims(claims, issuer, now)
        return claims

    def _check_claims(self, claims: Mapping[str, Any], issuer: str, now: int) -> None:
        if claims.get("iss") != issuer:
            _refuse("issuer", "the token names two issuers")
        audience = claims.get("aud")
        if isinstance(audience, list) and len(audience) == 1:
            audience = audience[0]
        if audience != self._audience:
            _refuse("audience", f"the token is for {_show(audience)}, expected {self._audience}")
        expires, issued = _time(claims, "exp"), _time(claims, "iat")
        begins = _time(claims, "nbf") if "nbf" in claims else issued
        if now >= expires + LEEWAY:
            _refuse("expired", f"the token expired at {expires}, it is {now}")
        if now < max(issued, begins) - LEEWAY:
            _refuse("early", f"the token is valid from {max(issued, begins)} on, it is {now}")
        if expires - issued > MAX_LIFETIME:
            _refuse("lifetime", f"the token lives for {expires - issued} s, expected at most {MAX_LIFETIME}")


class TokenSource:
    """Verifiers for what grants name, kept with their keys for as long as the grants name the same."""

    def __init__(self, http: "HttpClient | None" = None) -> None:
        self._http = http
        self._lock = threading.Lock()
        self._made: tuple[tuple[frozenset[str], str], TokenVerifier] | None = None

    def verifier(self, issuers: frozenset[str], audience: str) -> TokenVerifier:
        """Return the verifier for these issuers and this audience."""
        with self._lock:
            if self._made is None or self._made[0] != (issuers, audience):
                self._made = (issuers, audience), TokenVerifier(issuers, audience, self._client())
            return self._made[1]

    def _client(self) -> "HttpClient":
        if self._http is None:
            self._http = _own_client()
        return self._http


class WorkerGate:
    """Lets through what Google's queue calls: a token of Google's, for this URL, of this service account."""

    def __init__(self, url: str, service_account: str, http: "HttpClient") -> None:
        self._verifier = TokenVerifier([GOOGLE], url, http)
        self._service_account = service_account

    def check(self, headers: Mapping[str, str], now: int) -> None:
        """Raise as `TokenVerifier.verify` does, and `InvalidEvidence("deploy.token.worker")`."""
        claims = self._verifier.verify(bearer_token(headers), now)
        email = claims.get("email")
        if (
            not self._service_account
            or email != self._service_account
            or claims.get("email_verified") is not True
        ):
            _refuse("worker", f"the token is of {_show(email)}, expected the queue's service account")


def worker_gate(
    environ: Mapping[str, str], http: "HttpClient | None" = None, *, variable: str = "DSTACK_QUEUE"
) -> WorkerGate:
    """Return the gate of a queue that a variable names, `tasks:QUEUE|WORKER_URL|SERVICE_ACCOUNT`.

    Raises `ConfigError("deploy.settings")`.
    """
    kind, _, place = environ.get(variable, "").partition(":")
    parts = place.split("|")
    if kind != "tasks" or len(parts) != 3 or not all(parts):
        raise ConfigError(
            "deploy.settings",
            f"{variable} is not tasks:QUEUE|WORKER_URL|SERVICE_ACCOUNT, so nobody is let in",
        )
    return WorkerGate(parts[1], parts[2], http or _own_client())


def _own_client() -> "HttpClient":
    from shared.net.dialer import DirectDialer  # noqa: PLC0415 - most imports of this verify nothing
    from shared.net.fetch import HttpClient  # noqa: PLC0415 - as above

    return HttpClient(DirectDialer())


class IssuerKeys:
    """The public keys of one issuer, fetched when they are needed, and seldom."""

    def __init__(self, issuer: str, http: "HttpClient") -> None:
        self._issuer = issuer
        self._http = http
        self._keys: dict[str, _Key] = {}
        self._fetched_at: int | None = None
        self._tried_at: int | None = None
        self._lock = threading.Lock()

    def get(self, key_id: object, now: int) -> _Key:
        """Return the key of an id.

        Raises `InvalidEvidence("deploy.token.key")`, `UnavailableError("deploy.issuer")`.
        """
        if not isinstance(key_id, str) or not 0 < len(key_id) <= MAX_KEY_ID:
            _refuse("key", "the token does not name its key")
        # one thread fetches, and the others wait for it, no longer than it may take
        with self._lock:
            if self._is_due(key_id, now):
                self._fetch(now)
            if self._fetched_at is None or now - self._fetched_at > KEEP_FOR:
                raise UnavailableError(
                    "deploy.issuer", f"the keys of {self._issuer} cannot be had: try again"
                )
            if key_id not in self._keys:
                _refuse(
                    "key", f"the token is signed by the key {_show(key_id)}, which its issuer does not list"
                )
            return self._keys[key_id]

    def _is_due(self, key_id: str, now: int) -> bool:
        if self._fetched_at is not None and key_id in self._keys and now - self._fetched_at < REFRESH_AFTER:
            return False
        pause = RETRY_AFTER if self._fetched_at is None else REFETCH_AFTER
        return self._tried_at is None or now - self._tried_at >= pause

    def _fetch(self, now: int) -> None:
        self._tried_at = now
        try:
            document = self._object(self._issuer.rstrip("/") + _DISCOVERY, MAX_DISCOVERY)
            url = document.get("jwks_uri")
            if document.get("issuer") != self._issuer or not isinstance(url, str):
                raise UnavailableError("deploy.issuer", f"{self._issuer} describes another issuer")
            keys = _key_set(self._object(url, MAX_KEY_SET))
        except DstackError as error:
            if self._fetched_at is None:
                raise UnavailableError(
                    "deploy.issuer", f"the keys of {self._issuer} cannot be had: {error.message}"[:400]
                ) from error
            return  # the keys that are there serve for a while
        self._keys = keys
        self._fetched_at = now

    def _object(self, url: str, limit: int) -> dict[str, Any]:
        if not url.startswith("https://"):
            raise UnavailableError("deploy.issuer", f"got the url {_show(url)}, expected https")
        answer = self._http.request("GET", url, timeout=TIMEOUT, max_bytes=limit)
        if answer.status != 200:
            raise UnavailableError("deploy.issuer", f"got status {answer.status} for {_show(url)}")
        document = decode_json(
            answer.body, what="the answer", code="deploy.issuer", max_bytes=limit, max_depth=8
        )
        if not isinstance(document, dict):
            raise UnavailableError("deploy.issuer", f"got no json object from {_show(url)}")
        return document


def bearer_token(headers: Mapping[str, str]) -> str:
    """Return the token of a request. Raises `InvalidEvidence("deploy.token.missing")`."""
    value = next((text for name, text in headers.items() if name.lower() == "authorization"), "")
    scheme, _, token = value.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        _refuse("missing", "there is no bearer token")
    return token.strip()


def _key_set(document: Mapping[str, Any]) -> dict[str, _Key]:
    """Return the keys that can be used; of others, and there may be such, nothing is said."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise UnavailableError("deploy.issuer", f"there is no list of up to {MAX_KEYS} keys")
    found: dict[str, _Key] = {}
    for entry in listed:
        if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
            continue
        key = _key(entry)
        if key is None:
            continue
        if entry["kid"] in found:
            raise UnavailableError("deploy.issuer", f"two keys are called {_show(entry['kid'])}")
        found[entry["kid"]] = key
    if not found:
        raise UnavailableError("deploy.issuer", "there is no key that could be used")
    return found


def _key(entry: Mapping[str, Any]) -> _Key | None:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa  # noqa: PLC0415 - as the import of jwt
    from jwt import PyJWTError  # noqa: PLC0415 - as above
    from jwt.algorithms import ECAlgorithm, RSAAlgorithm  # noqa: PLC0415 - as above

    if entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        public: object
        if entry.get("kty") == "RSA" and entry.get("alg", "RS256") == "RS256":
            public = RSAAlgorithm.from_jwk(dict(entry))
            is_good = isinstance(public, rsa.RSAPublicKey) and MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS
            return _Key("RS256", public) if is_good else None
        if entry.get("kty") == "EC" and entry.get("alg", "ES256") == "ES256":
            public = ECAlgorithm.from_jwk(dict(entry))
            is_good = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1)
            return _Key("ES256", public) if is_good else None
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    return None


def _time(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        _refuse("malformed", f"the token's {name} is no time")
    return int(value)


# times are held against the caller's clock, the audience by exact comparison
_SIGNATURE_ALONE: Final[Any] = dict.fromkeys(
    ("verify_exp", "verify_nbf", "verify_iat", "verify_aud", "verify_iss", "verify_sub", "verify_jti"),
    False,
)


def _show(value: object) -> str:
    return ascii(value)[:80]


def _refuse(code: str, message: str) -> NoReturn:
    raise InvalidEvidence(f"deploy.token.{code}", message)
