"""N-50 with real-format evidence: what a certificate carries must be about that certificate's key."""

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import InvalidEvidence
from shared.ratls.certificates import (
    ROOT_CA_NAME,
    TEMP_CA_NAME,
    Issuer,
    client_certificate,
    rpc_certificate,
    self_signed_ca,
    spki_der,
)
from shared.ratls.peer import check_client_certificate, check_kms_certificate, ratls_report_data

NOW = 1_800_000_000
APP_ID = b"\x11" * 20
KEY = ec.derive_private_key(1, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(2, ec.SECP256R1())
TEMP_KEY = ec.derive_private_key(3, ec.SECP256R1())
TEMP_CA = self_signed_ca(TEMP_KEY, TEMP_CA_NAME, 0, NOW, NOW + 86_400)
TEMP_DER = TEMP_CA.public_bytes(Encoding.DER)
ROOT = self_signed_ca(TEMP_KEY, ROOT_CA_NAME, 1, NOW, NOW + 86_400)

Attest = Callable[[ec.EllipticCurvePrivateKey], bytes]


@pytest.fixture(scope="module")
def authority() -> SimulatedAuthority:
    return SimulatedAuthority.create()


@pytest.fixture(scope="module")
def anchors(authority: SimulatedAuthority) -> TrustAnchors:
    return TrustAnchors.production().with_extra(authority.root_pem)


@pytest.fixture(scope="module")
def attest(authority: SimulatedAuthority) -> Attest:
    pcrs = {index: bytes([index + 1]) * 48 for index in range(3)}
    attestor = NitroAttestor(Nsm(SimulatedNsm(pcrs, authority, clock=lambda: NOW)), APP_ID)
    return lambda key: attestor.attest(report_data(RATLS_CERT, spki_der(key.public_key())))


@pytest.mark.parametrize("issuer", [(TEMP_CA, TEMP_KEY), None], ids=["temp-ca", "self-issued"])
def test_takes_a_client_with_evidence_for_its_key(
    issuer: Issuer | None, attest: Attest, anchors: TrustAnchors
) -> None:
    certificate = client_certificate(KEY, attestation=attest(KEY), issuer=issuer, now=NOW)
    envelope, expected = _client(certificate)
    verified = verify_attestation(envelope, now=NOW, anchors=anchors, report_data=expected)
    assert verified.evidence.document.user_data == expected


@pytest.mark.parametrize("issuer", [(TEMP_CA, TEMP_KEY), None], ids=["temp-ca", "self-issued"])
def test_n50_refuses_a_client_with_evidence_for_another_key(
    issuer: Issuer | None, attest: Attest, anchors: TrustAnchors
) -> None:
    certificate = client_certificate(OTHER_KEY, attestation=attest(KEY), issuer=issuer, now=NOW)
    envelope, expected = _client(certificate)
    with pytest.raises(InvalidEvidence) as caught:
        verify_attestation(envelope, now=NOW, anchors=anchors, report_data=expected)
    assert caught.value.code == "attestation.report_data"


def test_n50_refuses_a_kms_with_evidence_for_another_key(attest: Attest, anchors: TrustAnchors) -> None:
    certificate = rpc_certificate(
        OTHER_KEY, domain="kms", issuer=(ROOT, TEMP_KEY), attestation=attest(KEY), now=NOW
    )
    der = certificate.public_bytes(Encoding.DER)
    envelope = check_kms_certificate(
        der, root_ca_pem=ROOT.public_bytes(Encoding.PEM), hostname="kms", now=NOW
    )
    with pytest.raises(InvalidEvidence) as caught:
        verify_attestation(envelope, now=NOW, anchors=anchors, report_data=ratls_report_data(der))
    assert caught.value.code == "attestation.report_data"


def _client(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    der = certificate.public_bytes(Encoding.DER)
    shown = check_client_certificate(der, temp_ca_der=TEMP_DER, now=NOW)
    assert shown.envelope is not None
    assert shown.report_data == ratls_report_data(der)
    return shown.envelope, shown.report_data
