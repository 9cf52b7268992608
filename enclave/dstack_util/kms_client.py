"""A client of one pinned, attested KMS. Every connection repeats every check of the server."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Self, TypeVar

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from enclave.dstack_util.enclave_config import EnclaveConfig, KmsEndpoint
from enclave.platform import Platform
from enclave.tee.peers import PeerVerifier
from shared.errors import ConfigError, DstackError, PolicyDenied, ProtocolError, UnavailableError
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import Dialer
from shared.ratls.peer import check_kms_certificate, ratls_report_data
from shared.rpc.codec import from_json, to_json

TIMEOUT = 60.0
"""Seconds for one whole exchange, as upstream's client allows (spec kms section 1.4)."""

PATIENCE = 3.0
"""Seconds. The server waits for our part of the handshake while its evidence is checked, a KMS of ours for
five. A check that fetched collateral for longer is over too late, but what it fetched is remembered."""

TOO_MANY_CALLS = "prpc.rate"
"""What a KMS of ours answers for now, under the status of a refusal as upstream's protocol has no other."""

MAX_REFUSAL = 2000
"""Characters of a refusal's text that are worth showing."""

ReplyT = TypeVar("ReplyT", bound=Message)


class ClientIdentity(msgspec.Struct, frozen=True):
    """A TLS key and the certificate that carries the evidence bound to it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class KmsClient:
    """Speaks to the KMS at `endpoint`, which must be attested and under the root CA of `root_pem`."""

    def __init__(
        self, endpoint: KmsEndpoint, *, root_pem: bytes, dialer: Dialer, verifier: PeerVerifier
    ) -> None:
        self.root_pem = root_pem
        self._host, self._port, self._base = endpoint.host, endpoint.port, endpoint.base
        self._dialer = dialer
        self._verifier = verifier

    @classmethod
    def of_image(
        cls, platform: Platform, config: EnclaveConfig, endpoint: KmsEndpoint, verifier: PeerVerifier
    ) -> Self:
        """Return the client of a KMS that the measured image names.

        Raises `ConfigError("get_keys.root_pin")` when the image pins no root CA: without one, whoever answers
        would be believed.
        """
        if not config.kms.root_ca:
            raise ConfigError(
                "get_keys.root_pin", "the image pins no kms.root_ca, so no KMS can be told apart"
            )
        root_pem = platform.read_measured(config.kms.root_ca)
        return cls(endpoint, root_pem=root_pem, dialer=platform.dialer(), verifier=verifier)

    def check_server(self, leaf_der: bytes) -> None:
        """Refuse a server that is not an attested KMS under the pinned root (spec kms section 4.7)."""
        envelope = check_kms_certificate(
            leaf_der, root_ca_pem=self.root_pem, hostname=self._host, now=self._verifier.now()
        )
        self._verifier.verify(envelope, ratls_report_data(leaf_der))

    def _check_promptly(self, leaf_der: bytes) -> None:
        started = time.monotonic()
        self.check_server(leaf_der)
        if time.monotonic() - started > PATIENCE:
            raise _CheckedTooLateError

    def call(
        self,
        method: str,
        request: Message | None,
        reply: type[ReplyT],
        identity: ClientIdentity | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> ReplyT:
        """Call one method over a new verified connection and return its reply.

        `timeout` is in seconds, for the connection and for the answer each. Raises
        `PolicyDenied("kms.refused")` with the KMS's own text, `UnavailableError("kms.unavailable")` when it
        has no time for us now, and what the connection and the checks of the server raise.
        """
        body = b"null" if request is None else to_json(request)
        try:
            connection = self._connect(identity, self._check_promptly, timeout)
        except _CheckedTooLateError:
            connection = self._connect(identity, self.check_server, timeout)
        with connection:
            response = connection.request(
                "POST",
                f"{self._base}/{method}?json",
                body=body,
                headers={"content-type": "application/json"},
            )
        if response.status != HTTPStatus.OK:
            raise _refusal(response.status, response.body)
        return from_json(reply, response.body)

    def _connect(
        self, identity: ClientIdentity | None, check_server: Callable[[bytes], None], timeout: float
    ) -> AttestedConnection:
        return AttestedConnection.connect(
            self._dialer,
            self._host,
            self._port,
            client_key=None if identity is None else identity.key,
            client_chain=() if identity is None else (identity.certificate,),
            check_peer=check_server,
            timeout=timeout,
        )


class _CheckedTooLateError(Exception):
    """The server is whom we want, and has given up waiting by now: connect again."""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: str
    code: str = ""


def _refusal(status: int, body: bytes) -> DstackError:
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return UnavailableError("kms.unavailable", f"the KMS answered {status}: it may be asked again later")
    try:
        refusal = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ProtocolError("kms.malformed", f"the KMS answered {status} without an error text")
    if refusal.code == TOO_MANY_CALLS:
        return UnavailableError("kms.unavailable", f"the KMS has no time now: {refusal.error[:MAX_REFUSAL]}")
    code = f" ({refusal.code})" if refusal.code else ""  # upstream's KMS has none
    return PolicyDenied("kms.refused", f"the KMS refused: {refusal.error[:MAX_REFUSAL]}{code}")
