"""Attested TLS for apps: to another app, or to a KMS, knowing who answers (docs/attested-tls.md)."""

import os
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.errors import ConfigError
from shared.net.attested_client import MAX_BODY_BYTES, AttestedConnection
from shared.net.attested_peer import Expected, Peer, check_server
from shared.net.dialer import Dialer, DirectDialer
from shared.net.peer_verifier import PeerVerifier
from shared.net.response import Response
from shared.ratls.tls_identity import TlsIdentity

TIMEOUT: Final = 60.0
"""Seconds, unless the caller says otherwise."""

PROMPT: Final = 3.0
"""Seconds. A server waits for our part of the handshake while its evidence is checked, ours for five. A check
that fetched collateral for longer is over too late, but what it fetched is remembered."""


class AttestedSession:
    """One connection to a peer that was checked; requests follow each other on it. Use as a context manager.

    `peer` is who answers. A session does not connect again by itself: another connection may end elsewhere,
    and is another session, with another check.
    """

    def __init__(self, connection: AttestedConnection, peer: Peer) -> None:
        """Use `attested_session`."""
        self._connection = connection
        self.peer = peer

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        max_bytes: int = MAX_BODY_BYTES,
        timeout: float | None = None,
    ) -> Response:
        """Send one request and read its whole response. Raises as `AttestedConnection.request`."""
        return self._connection.request(method, path, body, headers, max_bytes=max_bytes, timeout=timeout)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def attested_session(
    url: str,
    *,
    expected: Expected,
    verifier: PeerVerifier,
    dialer: Dialer | None = None,
    identity: TlsIdentity | None = None,
    timeout: float = TIMEOUT,
) -> AttestedSession:
    """Connect to `https://host[:port]` and return the session once the peer is whom one expects.

    Nothing is sent before that, not even our certificate. `dialer` is the way out: a `ConnectDialer` in an
    enclave, plain TCP when None. `identity` is what we show to a server that asks who calls. Raises
    `ConfigError`: `session.url`, `net.target.invalid`; what `check_server` raises; and what
    `AttestedConnection.connect` raises.
    """
    host, port = _origin(url)
    found: list[Peer] = []

    def connect(*, promptly: bool) -> AttestedConnection:
        def check(chain: Sequence[bytes]) -> None:
            started = time.monotonic()
            found[:] = [check_server(chain, expected=expected, hostname=host, verifier=verifier)]
            if promptly and time.monotonic() - started > PROMPT:
                raise _CheckedTooLateError

        return AttestedConnection.connect_by_chain(
            dialer or DirectDialer(),
            host,
            port,
            check_chain=check,
            timeout=timeout,
            client_key=None if identity is None else identity.key,
            client_chain=() if identity is None else identity.chain,
        )

    try:
        connection = connect(promptly=True)
    except _CheckedTooLateError:
        connection = connect(promptly=False)
    return AttestedSession(connection, found[0])


def ssl_server_context(identity: TlsIdentity) -> ssl.SSLContext:
    """Return a context of the standard library for an app's server, for `http.server`, asyncio or uvicorn.

    It asks for no client certificate: where callers are to be known too, take
    `shared.ratls.tls.mutual_context`. The key goes through anonymous memory, never to a disk.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    key = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem = key + b"".join(one.public_bytes(Encoding.PEM) for one in identity.chain)
    descriptor = os.memfd_create("tls-identity")
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


class _CheckedTooLateError(Exception):
    """The server is whom we want, and has given up waiting by now: connect again."""


def _origin(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise ConfigError("session.url", "the url has an invalid host or port") from error
    if (
        parts.scheme != "https"
        or not parts.hostname
        or parts.path.strip("/")
        or parts.query
        or "@" in parts.netloc
    ):
        raise ConfigError("session.url", f"url is {url[:200]!r}, expected https://host[:port]")
    return parts.hostname, port
