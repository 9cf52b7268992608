"""The running KMS that a new one gets its root keys from (spec kms section 5.3).

Upstream checks the evidence of one connection and takes the keys from a second one, whose server nobody
checked. Here the keys come over a connection whose TLS key is the one that the evidence is bound to, and the
request leaves after the policy has allowed what the evidence shows.

Upstream's main listener ends a handshake with a client certificate that its temporary CA did not issue, and
that CA is asked for first, without one. So the main listener of a source takes two connections: the first
one's certificate is checked with its evidence, and the second one must show the same, byte for byte. An admin
listener has no such CA and takes a certificate that we issued ourselves: one connection does.
"""

import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from enclave.tee.evidence import certificate_evidence
from enclave.tee.peers import PeerVerifier
from enclave.tee.tee import Attestor
from shared.attestation.verify import VerifiedAttestation
from shared.ec_key import ec_key
from shared.errors import InvalidEvidence, PolicyDenied, ProtocolError
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import Dialer
from shared.net.response import Response
from shared.ratls.certificates import Issuer, client_certificate
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

MAX_TOKEN = 1024
"""Characters. Longer than anybody's token, and short beside what servers take as the head of a request."""

# What arrives as it was sent: a header holds no other bytes, and loses spaces at its ends.
_TOKEN = re.compile(r"[!-~](?:[ -~]*[!-~])?")

AnswerT = TypeVar("AnswerT", bound=Message)


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


class SourceToken:
    """The token of a source's admin listener. It shows itself in the header of a request and nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Use `parse`."""
        self._text = text

    @classmethod
    def parse(cls, text: str) -> "SourceToken | None":
        """Return the token, None for an empty text.

        Raises `ProtocolError("kms.source.token")` for what no header carries unchanged.
        """
        if not text:
            return None
        if len(text) > MAX_TOKEN or not _TOKEN.fullmatch(text):
            raise ProtocolError(
                "kms.source.token",
                f"source_token is not 1 to {MAX_TOKEN} printable ascii characters without spaces at its ends",
            )
        return cls(text)

    def header(self) -> dict[str, str]:
        """Return the request header that carries it."""
        return {"authorization": f"Bearer {self._text}"}

    def __repr__(self) -> str:
        """Hide the token."""
        return "SourceToken()"


class _Client(NamedTuple):
    """What this guest shows of itself in one handshake."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


class SourceKms:
    """A client of source KMSes, with this guest's evidence."""

    def __init__(self, *, dialer: Dialer, verifier: PeerVerifier, attestor: Attestor) -> None:
        self._dialer = dialer
        self._verifier = verifier
        self._attestor = attestor

    def root_keys(
        self,
        source: Source,
        approve: Callable[[VerifiedAttestation], None],
        token: SourceToken | None = None,
    ) -> tuple[pb.KmsKeyResponse, bytes]:
        """Return the source's answer to GetKmsKey, and the certificate (DER) of the server that gave it.

        `approve` sees the verified evidence of that server, and raises to refuse it, before it is asked for
        anything. With a `token` the server is taken for an admin listener. Raises
        `PolicyDenied("kms.source.refused")` with the source's own text,
        `InvalidEvidence("kms.source.changed")` where another server answers the second time, and what the
        connection and the checks raise.
        """
        check = _Check(self._verifier)
        client = None if token is None else self._client(issuer=None)
        with self._connect_checked(source, check, client) as connection:
            leaf = connection.peer_chain[0]
            approve(check.passed(leaf))
            if token is not None:
                return _root_keys(connection, source, token.header()), leaf
            issuer = _temp_ca(_ask(connection, source, "GetTempCaCert", Empty(), pb.GetTempCaCertResponse))
        client = self._client(issuer)
        with self._connect(source, partial(_check_same, leaf), client) as connection:
            return _root_keys(connection, source), leaf

    def _client(self, issuer: Issuer | None) -> _Client:
        key = ec.generate_private_key(ec.SECP256R1())
        evidence = certificate_evidence(self._attestor, key.public_key())
        now = self._verifier.now()
        return _Client(key, client_certificate(key, attestation=evidence, issuer=issuer, now=now))

    def _connect_checked(self, source: Source, check: "_Check", client: _Client | None) -> AttestedConnection:
        try:
            return self._connect(source, check.promptly, client)
        except _CheckedTooLateError:
            return self._connect(source, check, client)

    def _connect(
        self, source: Source, check_peer: Callable[[bytes], None], client: _Client | None
    ) -> AttestedConnection:
        return AttestedConnection.connect(
            self._dialer,
            source.host,
            source.port,
            client_key=client.key if client else None,
            client_chain=(client.certificate,) if client else (),
            check_peer=check_peer,
            timeout=TIMEOUT,
        )


def _root_keys(
    connection: AttestedConnection, source: Source, headers: Mapping[str, str] | None = None
) -> pb.KmsKeyResponse:
    return _ask(connection, source, "GetKmsKey", pb.GetKmsKeyRequest(), pb.KmsKeyResponse, headers)


def _ask(
    connection: AttestedConnection,
    source: Source,
    method: str,
    request: Message,
    answer: type[AnswerT],
    headers: Mapping[str, str] | None = None,
) -> AnswerT:
    response = connection.request(
        "POST",
        f"{source.base}/{method}?json",
        body=to_json(request),
        headers={"content-type": "application/json", **(headers or {})},
        max_bytes=MAX_ANSWER_BYTES,
    )
    if response.status != HTTPStatus.OK:
        raise _refusal(response)
    return from_json(answer, response.body)


def _check_same(expected: bytes, leaf: bytes) -> None:
    if leaf != expected:
        raise InvalidEvidence(
            "kms.source.changed",
            "the source shows another certificate than the one whose evidence was checked: try again",
        )


def _temp_ca(answer: pb.GetTempCaCertResponse) -> Issuer:
    """Return the temporary CA that the source wants a client certificate of. It is nobody's identity."""
    try:
        certificate = x509.load_pem_x509_certificate(answer.temp_ca_cert.encode())
        key = load_pem_private_key(answer.temp_ca_key.encode(), password=None)
        fits = ec_key(certificate) == key.public_key()
        _ = certificate.subject, certificate.extensions  # parsed on first use
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.InvalidVersion):
        fits = False
    if not fits or not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        # no cause: a parser's error could quote what it read
        raise ProtocolError(
            "kms.source.malformed", "the source's temporary ca is no p-256 key with its certificate"
        )
    return certificate, key


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
    if response.status == HTTPStatus.UNAUTHORIZED:
        return PolicyDenied("kms.source.refused", "source KMS answered 401: it wants a token, or another one")
    try:
        text = msgspec.json.decode(response.body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ProtocolError("kms.source.malformed", f"source KMS answered {response.status} without a text")
    return PolicyDenied("kms.source.refused", f"source KMS refused: {text[:MAX_REFUSAL]}")
