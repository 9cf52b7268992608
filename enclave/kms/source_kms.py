"""The running KMS that a new one gets its root keys from: asked over one connection (spec kms section 5.3).

Upstream checks the evidence of one connection and takes the keys from a second one, whose server nobody
checked. Here the connection whose TLS key the evidence is bound to is the one that the request goes over, and
the request leaves after the policy has allowed what the evidence shows.
"""

import time
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier
from enclave.tee.tee import Attestor
from shared.attestation.verify import VerifiedAttestation
from shared.errors import PolicyDenied, ProtocolError
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import Dialer
from shared.net.response import Response
from shared.ratls.certificates import client_certificate
from shared.ratls.peer import check_source_kms_certificate, ratls_report_data
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json, to_json

TIMEOUT = 60.0
"""Seconds for the connection, and again for the request, as upstream's client allows."""

PATIENCE = 3.0
"""Seconds. A source of ours waits five for our part of the handshake, while its evidence is checked here. A
check that took longer is done again on a new connection, with what it fetched remembered."""

MAX_ANSWER_BYTES = 64 * 1024
MAX_REFUSAL = 400

DEFAULT_PORT = 443


class Source(msgspec.Struct, frozen=True):
    """Where a source KMS is: `base` is the path that its methods hang below."""

    host: str
    port: int
    base: str

    @classmethod
    def parse(cls, url: str) -> "Source":
        """Return the parts of `https://host[:port][/path]`. Raises `ProtocolError("kms.source.url")`."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ProtocolError("kms.source.url", "source_url is not a url") from error
        extra = parts.query or parts.fragment or parts.username is not None or parts.password is not None
        if parts.scheme != "https" or not host or port == 0 or extra:
            raise ProtocolError("kms.source.url", "source_url is not https://host[:port][/path]")
        path = parts.path.rstrip("/")
        return cls(host, port or DEFAULT_PORT, path if path.endswith("/prpc") else path + "/prpc")


class SourceKms:
    """A client of source KMSes, with this guest's evidence."""

    def __init__(self, *, dialer: Dialer, verifier: PeerVerifier, attestor: Attestor) -> None:
        self._dialer = dialer
        self._verifier = verifier
        self._attestor = attestor

    def root_keys(
        self, source: Source, approve: Callable[[VerifiedAttestation], None]
    ) -> tuple[pb.KmsKeyResponse, bytes]:
        """Return the source's answer to GetKmsKey, and the certificate (DER) of the server that gave it.

        `approve` sees the verified evidence of that server, and raises to refuse it, before it is asked.
        Raises `PolicyDenied("kms.source.refused")` with the source's own text, and what the connection and
        the checks raise.
        """
        check = _Check(self._verifier)
        try:
            connection = self._connect(source, check.promptly)
        except _CheckedTooLateError:
            connection = self._connect(source, check)
        with connection:
            approve(check.passed(connection.peer_chain[0]))
            response = connection.request(
                "POST",
                f"{source.base}/GetKmsKey?json",
                body=to_json(pb.GetKmsKeyRequest()),
                headers={"content-type": "application/json"},
                max_bytes=MAX_ANSWER_BYTES,
            )
            if response.status != HTTPStatus.OK:
                raise _refusal(response)
            return from_json(pb.KmsKeyResponse, response.body), connection.peer_chain[0]

    def _connect(self, source: Source, check_peer: Callable[[bytes], None]) -> AttestedConnection:
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = certificate_evidence(self._attestor, key.public_key())
        certificate = client_certificate(key, attestation=evidence, issuer=None, now=self._verifier.now())
        return AttestedConnection.connect(
            self._dialer,
            source.host,
            source.port,
            client_key=key,
            client_chain=(certificate,),
            check_peer=check_peer,
            timeout=TIMEOUT,
        )


class _Check:
    """Verifies a server's certificate with its evidence, and remembers what exactly that leaf showed."""

    def __init__(self, verifier: PeerVerifier) -> None:
        self._verifier = verifier
        self._passed: tuple[bytes, VerifiedAttestation] | None = None

    def __call__(self, leaf: bytes) -> None:
        self._passed = None
        envelope = check_source_kms_certificate(leaf, now=self._verifier.now())
        self._passed = (leaf, self._verifier.verify(envelope, ratls_report_data(leaf)))

    def promptly(self, leaf: bytes) -> None:
        started = time.monotonic()
        self(leaf)
        if time.monotonic() - started > PATIENCE:
            raise _CheckedTooLateError

    def passed(self, leaf: bytes) -> VerifiedAttestation:
        """Return the evidence of the connection's own leaf, and of no other."""
        if self._passed is None or self._passed[0] != leaf:  # pragma: no cover - connect checks every leaf
            raise RuntimeError("the connection's certificate was not checked")
        return self._passed[1]


class _CheckedTooLateError(Exception):
    """The server is whom we want, and has given up waiting by now: connect again."""


class _ErrorBody(msgspec.Struct, frozen=True):
    error: str


def _refusal(response: Response) -> PolicyDenied | ProtocolError:
    try:
        text = msgspec.json.decode(response.body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ProtocolError("kms.source.malformed", f"source KMS answered {response.status} without a text")
    return PolicyDenied("kms.source.refused", f"source KMS refused: {text[:MAX_REFUSAL]}")
