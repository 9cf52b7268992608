"""What a KMS operator and an auditor do from outside: bootstrap, check the evidence, take the root pin."""

from http import HTTPStatus

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cli.demo.answers import decode_answer, unreadable
from cli.demo.guests import Measured
from functions.deploy.evidence import Verifier
from shared.attestation.report_data import bootstrap_report_data
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import NITRO_ENCLAVE
from shared.errors import InvalidEvidence, ProtocolError
from shared.hex import decode_hex
from shared.net.attested_client import AttestedConnection
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.response import Response
from shared.ratls.peer import check_kms_certificate, ratls_report_data

TIMEOUT = 30.0
JSON_HEADERS = {"content-type": "application/json"}


class KmsRoots(msgspec.Struct, frozen=True):
    """The public half of freshly made root keys, attested: SPKI DER, compressed k256 key, envelope."""

    ca_pubkey: bytes
    k256_pubkey: bytes
    attestation: bytes


class Audit(msgspec.Struct, frozen=True):
    """What a running KMS proved and told of itself."""

    root_pem: bytes
    k256_pubkey: bytes
    auth_mode: str
    clock_source: str
    quorum: int


class _Bootstrapped(msgspec.Struct, frozen=True):
    ca_pubkey: str
    k256_pubkey: str
    attestation: str


class _Policy(msgspec.Struct, frozen=True):
    auth_mode: str
    clock_source: str
    quorum: int
    simulated: bool
    treat_nitro_as_up_to_date: bool
    evidence_policy: tuple[str, ...]


class _Meta(msgspec.Struct, frozen=True):
    ca_cert: str
    k256_pubkey: str
    policy: _Policy


class KmsOperator:
    """Talks to one KMS at `address`, (host, port). Believes nothing that evidence does not carry."""

    def __init__(self, http: HttpClient, address: tuple[str, int], verifier: Verifier) -> None:
        self._http = http
        self._host, self._port = address
        self._verifier = verifier

    def bootstrap(self, domain: str, approved: Measured) -> KmsRoots:
        """Have the KMS make its root keys, and verify that the approved workload made them.

        Raises `InvalidEvidence("demo.kms.image")`, `ProtocolError("demo.answer")`, and what verification
        raises.
        """
        answer = decode_answer(
            self._onboard("Bootstrap", domain).body, _Bootstrapped, what="the answer to Bootstrap"
        )
        roots = KmsRoots(
            ca_pubkey=decode_hex(answer.ca_pubkey, what="ca_pubkey"),
            k256_pubkey=decode_hex(answer.k256_pubkey, what="k256_pubkey", length=33),
            attestation=decode_hex(answer.attestation, what="attestation"),
        )
        expected = bootstrap_report_data(roots.ca_pubkey, roots.k256_pubkey)
        self._verify(roots.attestation, expected, approved)
        return roots

    def refuse_second_bootstrap(self, domain: str) -> None:
        """Check that a second bootstrap is refused. Raises `ProtocolError("demo.kms.rebootstrapped")`."""
        response = self._onboard("Bootstrap", domain, status=HTTPStatus.BAD_REQUEST)
        if b"already been bootstrapped" not in response.body:
            raise ProtocolError("demo.kms.rebootstrapped", "a second bootstrap was not refused as such")

    def finish(self) -> None:
        """End onboarding: the KMS goes on to its main listener."""
        self._onboard("Finish", "")

    def audit(self, roots: KmsRoots, approved: Measured) -> Audit:
        """Connect over attested TLS and check who answers; returns the root CA to pin.

        The first answer is not believed either: its CA certificate must hold the key that was attested at
        bootstrap, and the connection's own certificate must be issued by it.
        """
        leaves: list[bytes] = []
        connection = AttestedConnection.connect(
            DirectDialer(), self._host, self._port, check_peer=leaves.append, timeout=TIMEOUT
        )
        with connection:
            response = connection.request("POST", "/prpc/GetMeta?json", b"", JSON_HEADERS)
        if response.status != HTTPStatus.OK:
            raise ProtocolError(
                "demo.kms.meta", f"GetMeta failed: {response.body[:500].decode(errors='replace')}"
            )
        meta = decode_answer(response.body, _Meta, what="the answer to GetMeta")
        root_pem = meta.ca_cert.encode()
        k256_pubkey = decode_hex(meta.k256_pubkey, what="k256_pubkey")
        if _spki(root_pem) != roots.ca_pubkey or k256_pubkey != roots.k256_pubkey:
            raise InvalidEvidence("demo.kms.roots", "the running KMS has other root keys than were attested")
        envelope = check_kms_certificate(
            leaves[0], root_ca_pem=root_pem, hostname=self._host, now=self._verifier.now()
        )
        verdict = self._verify(envelope, ratls_report_data(leaves[0]), approved).verdict
        policy = meta.policy
        is_enclave = verdict.platform == NITRO_ENCLAVE  # which has no TCB status that a contract could want
        if not policy.simulated or policy.treat_nitro_as_up_to_date != is_enclave or policy.evidence_policy:
            raise InvalidEvidence("demo.kms.policy", "the KMS does not report how lax it is")
        return Audit(root_pem, roots.k256_pubkey, policy.auth_mode, policy.clock_source, policy.quorum)

    def _verify(self, envelope: bytes, report_data: bytes, approved: Measured) -> VerifiedAttestation:
        return self._verifier.verify_workload(
            envelope,
            report_data,
            os_image_hash=approved.os_image_hash,
            compose_hash=approved.compose_hash,
            code="demo.kms.image",
        )

    def _onboard(self, method: str, domain: str, status: int = HTTPStatus.OK) -> Response:
        url = f"http://{self._host}:{self._port}/prpc/{method}?json"
        body = msgspec.json.encode({"domain": domain} if domain else {})
        response = self._http.request("POST", url, body=body, headers=JSON_HEADERS)
        if response.status != status:
            text = response.body[:500].decode(errors="replace")
            raise ProtocolError("demo.kms.onboard", f"{method} answered {response.status}: {text}")
        return response


def _spki(pem: bytes) -> bytes:
    try:
        public = x509.load_pem_x509_certificate(pem).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise unreadable("ca_cert in the answer to GetMeta", error) from error
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
