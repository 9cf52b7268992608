"""SignCert: certificates for an app from the KMS that its keys came from (spec kms sections 2.2, 4.5).

Stricter than upstream's client: the KMS's usage and evidence are checked besides its chain and its name, and
what it returns is read before an app gets it.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count
from random import SystemRandom
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.agent.certificates import KeyEvidence, check_validity_asked
from enclave.dstack_util.kms_client import ClientIdentity, KmsClient
from shared.errors import DstackError, InvalidEvidence, UnavailableError
from shared.ratls.app_peer import MAX_CHAIN, check_app_chain
from shared.ratls.certificates import Issuer, client_certificate, spki_der
from shared.ratls.csr import V2, CsrConfig, signed_csr
from shared.ratls.leaf import MAX_CERTIFICATE_BYTES
from shared.rpc import kms_pb2 as pb

MAX_PEM: Final = 2 * MAX_CERTIFICATE_BYTES
"""Characters of one certificate: base64 makes four of three bytes, and breaks lines."""

_REFUSED: Final = "kms.refused"
_BROKEN_OFF: Final = frozenset({"net.tls.truncated", "net.response.truncated"})


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a KMS that cannot be reached is asked again, in seconds.

    `total` bounds everything, `exchange` one connection. Pauses double from `first` to `longest`, each
    shortened by up to a half at random, so that guests that lost one KMS together do not come back together.
    """

    total: float = 30.0
    exchange: float = 10.0
    first: float = 0.25
    longest: float = 4.0
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    def pause(self, attempt: int, chance: float) -> float:
        """Return the seconds to wait after `attempt` (from 0); `chance` is from 0 to 1."""
        return min(self.longest, self.first * 2.0 ** min(attempt, 32)) * (0.5 + 0.5 * chance)


class KmsIssuer:
    """Asks the KMSes in order, over connections that show the same evidence as the request.

    `temporary` is the CA that the client certificate is issued by; None, and it issues itself.
    """

    def __init__(
        self,
        clients: Sequence[KmsClient],
        *,
        app_id: bytes,
        evidence: KeyEvidence,
        now: Callable[[], int],
        temporary: Issuer | None = None,
        vm_config: str = "",
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._clients = tuple(clients)
        self._app_id = app_id
        self._evidence = evidence
        self._now = now
        self._temporary = temporary
        self._vm_config = vm_config
        self._patience = patience
        self._chance = SystemRandom().random

    def issue(self, key: EllipticCurvePrivateKey, config: CsrConfig) -> tuple[str, ...]:
        """See `CertificateIssuer.issue`: the leaf, the app's CA and the KMS's root.

        1. Evidence is made over `key`, for the request and for the connection; 2. each KMS is asked in turn;
        one whose certificate or answer does not hold is not asked again, one that cannot be reached is, until
        `patience` is over; 3. the chain must be for `key`, of this app, and under the pinned root. A KMS's
        refusal is final. Raises `PolicyDenied("kms.refused")`; `InvalidEvidence`: `certificate.chain`,
        `certificate.key`, `certificate.app_id`, `certificate.evidence`, `ratls.*`; and what `KmsClient.call`
        raises: the first KMS's error.
        """
        check_validity_asked(config)
        envelope = self._evidence(key.public_key())
        data, signature = signed_csr(key, config, envelope)
        request = pb.SignCertRequest(api_version=V2, csr=data, signature=signature, vm_config=self._vm_config)
        certificate = client_certificate(key, attestation=envelope, issuer=self._temporary, now=self._now())
        identity = ClientIdentity(key, certificate)

        def ask(client: KmsClient, timeout: float) -> tuple[str, ...]:
            reply = client.call("SignCert", request, pb.SignCertResponse, identity, timeout=timeout)
            return self._check(reply.certificate_chain, key, config, client.root_pem)

        return self._ask_each(ask)

    def _ask_each(self, ask: Callable[[KmsClient, float], tuple[str, ...]]) -> tuple[str, ...]:
        end = self._patience.monotonic() + self._patience.total
        clients: Sequence[KmsClient] = self._clients
        failures: list[DstackError] = []
        for attempt in count():
            reachable_later = []
            for client in clients:
                timeout = min(self._patience.exchange, end - self._patience.monotonic())
                if timeout <= 0:
                    break
                try:
                    return ask(client, timeout)
                except DstackError as error:
                    if error.code == _REFUSED:
                        raise
                    failures.append(error)
                    if isinstance(error, UnavailableError) or error.code in _BROKEN_OFF:
                        reachable_later.append(client)
            clients = reachable_later
            pause = self._patience.pause(attempt, self._chance())
            if not clients or self._patience.monotonic() + pause >= end:
                break
            self._patience.sleep(pause)
        raise failures[0]

    def _check(
        self, pems: Sequence[str], key: EllipticCurvePrivateKey, config: CsrConfig, root_pem: bytes
    ) -> tuple[str, ...]:
        chain = _parse(pems)
        ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        leaf = check_app_chain(ders, root_ca_pem=root_pem, now=self._now(), role=None)
        if leaf.key != spki_der(key.public_key()):
            raise InvalidEvidence("certificate.key", "the KMS returned a certificate for another key")
        if leaf.app_id != self._app_id:
            raise InvalidEvidence(
                "certificate.app_id",
                f"the KMS returned a certificate of app {leaf.app_id.hex()}, expected {self._app_id.hex()}",
            )
        if config.ext_quote and leaf.envelope is None:
            raise InvalidEvidence(
                "certificate.evidence", "the KMS returned a certificate without the evidence asked for"
            )
        return tuple(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)


def _parse(pems: Sequence[str]) -> tuple[x509.Certificate, ...]:
    if not 1 <= len(pems) <= MAX_CHAIN or any(len(pem) > MAX_PEM for pem in pems):
        raise InvalidEvidence(
            "certificate.chain", f"the KMS returned {len(pems)} certificates, or one too long to read"
        )
    try:
        parsed = [x509.load_pem_x509_certificates(pem.encode()) for pem in pems]
    except (ValueError, x509.InvalidVersion) as error:
        raise InvalidEvidence("certificate.chain", "the KMS returned what is no certificate") from error
    if any(len(one) != 1 for one in parsed):
        raise InvalidEvidence("certificate.chain", "the KMS returned several certificates as one")
    return tuple(one[0] for one in parsed)
