"""Who may use the admin and onboarding methods: whoever holds a token (spec kms section 1.4).

Only the token's SHA-256 is kept, and compared in constant time. A listener that uses this in plain HTTP must
have the operator's own network: a token there guards against strangers, not against who carries it.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Collection

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from enclave.kms.audit import AUDIT, AuditLog, Case, Value
from enclave.serving.prpc import MAX_METHOD_NAME

Headers = list[tuple[bytes, bytes]]


class TokenAuth:
    """One token, known by the SHA-256 of its text (32 bytes).

    `basic` False takes no Basic authentication: a browser keeps that, and adds it to what any page asks for.
    """

    def __init__(self, digest: bytes, *, basic: bool = True) -> None:
        self._digest = digest
        self._basic = basic

    @property
    def challenge(self) -> str:
        """Return the `WWW-Authenticate` of a refusal."""
        return f'{"Basic" if self._basic else "Bearer"} realm="dstack-kms admin"'

    def allows(self, headers: Headers) -> bool:
        """Tell whether a request's headers carry the token, in upstream's order.

        X-Admin-Token is tried first; then a Bearer token, whose refusal is final; then Basic, with the token
        as the password, or as the user with an empty password. Of a repeated header the first counts.
        """
        first = dict(reversed(headers))
        if self._matches(first.get(b"x-admin-token", b"")):
            return True
        scheme, _, credentials = first.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            return self._matches(credentials.strip())
        return self._basic and scheme.lower() == b"basic" and self._allows_basic(credentials.strip())

    def _allows_basic(self, credentials: bytes) -> bool:
        try:
            user, colon, password = base64.b64decode(credentials, validate=True).partition(b":")
        except binascii.Error:
            return False
        return bool(colon) and self._matches(password or user)

    def _matches(self, token: bytes) -> bool:
        # an empty token is none, whatever was configured
        return hmac.compare_digest(hashlib.sha256(token).digest(), self._digest) and token != b""


class TokenGuard:
    """ASGI middleware: a request without the token gets 401 and an empty body, but on `public` paths.

    Such a refusal is a line of the audit log, with nothing of what was shown in the token's place.
    """

    def __init__(
        self,
        app: ASGIApp,
        auth: TokenAuth,
        public: Collection[str] = ("/health",),
        *,
        audit: AuditLog = AUDIT,
    ) -> None:
        self._app = app
        self._auth = auth
        self._public = public
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] == "http" and scope["path"] not in self._public:
            headers = [(name.lower(), value) for name, value in scope["headers"]]
            if not self._auth.allows(headers):
                self._audit.record("prpc.refused", _refusal(scope["path"]))
                challenge = {"www-authenticate": self._auth.challenge}
                await Response(status_code=401, headers=challenge)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(path: str) -> dict[str, Value]:
    told: dict[str, Value] = {
        "method": path.removeprefix("/prpc/")[:MAX_METHOD_NAME],
        "code": "kms.token",
        "message": "the request has no token, or another one than is configured",
    }
    return told | Case().fields()
