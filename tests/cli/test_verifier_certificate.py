"""The rules of `dstack-verifier --verify-cert` (spec attestation 7.2)."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cli.verifier_certificate import verify_certificate
from functions.verify.service import VerifyService
from shared.attestation.envelope import RuntimeEvent, encode_envelope
from shared.attestation.policy import DEFAULT_POLICY, Policy
from shared.attestation.report_data import report_data
from shared.attestation.stripped import strip
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import attestation_extension
from tests.shared.attestation.forgery import NOW, refuses
from tests.shared.attestation.guest_forgery import EVENTS, LEGACY, UNVERIFIED, TdxGuest

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app")])
BOUND = report_data("ratls-cert", spki_der(KEY.public_key()))
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
DER = Encoding.DER


@pytest.fixture(scope="module")
def guest() -> TdxGuest:
    """A TDX guest without a fault."""
    return TdxGuest()


def service(guest: TdxGuest, policy: Policy = DEFAULT_POLICY) -> VerifyService:
    return VerifyService(guest.anchors, policy, gather=lambda _attestation, _now: guest.endorsements)


def certificate(
    guest: TdxGuest,
    *,
    signer: Any = KEY,
    usage: bool | None = True,
    extended: tuple[x509.ObjectIdentifier, ...] | None = BOTH,
    names: tuple[str, ...] | None = ("app.example",),
    issuer: x509.Name = NAME,
    evidence: bool = True,
    days: int = 1,
    **evidence_changes: Any,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC) - timedelta(minutes=1))
        .not_valid_after(datetime.fromtimestamp(NOW, UTC) + timedelta(days=days))
    )
    if usage is not None:
        bits = dict.fromkeys(
            (
                *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
                *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
            ),
            False,
        )
        builder = builder.add_extension(x509.KeyUsage(digital_signature=usage, **bits), critical=True)
    if extended is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(extended), critical=False)
    if names is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
        )
    if evidence:
        made = strip(guest.attestation(**{"report_data": BOUND, **evidence_changes}))
        builder = builder.add_extension(attestation_extension(encode_envelope(made)), critical=False)
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else SHA256())


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
@pytest.mark.parametrize("extended", [BOTH, BOTH[:1], BOTH[1:]])
def test_a_self_signed_certificate_with_evidence_verifies(
    encoding: Encoding, extended: tuple[x509.ObjectIdentifier, ...], guest: TdxGuest
) -> None:
    data = certificate(guest, extended=extended).public_bytes(encoding)
    details = verify_certificate(data, service(guest), now=NOW)["details"]
    assert details["tee_variant"] == "dstack-tdx"
    assert details["report_data"] == BOUND.hex()
    assert details["public_key_der"] == spki_der(KEY.public_key()).hex()
    assert details["app_info"]["app_id"] == EVENTS[1].payload.hex()
    assert details["app_info"]["os_image_hash_verified"] is True


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"signer": OTHER}, "verify.certificate.signature"),
        ({"usage": None}, "verify.certificate.usage"),
        ({"usage": False}, "verify.certificate.usage"),
        ({"extended": None}, "verify.certificate.usage"),
        ({"extended": (ExtendedKeyUsageOID.CODE_SIGNING,)}, "verify.certificate.usage"),
        ({"names": None}, "verify.certificate.usage"),
        ({"evidence": False}, "verify.file.no_attestation"),
    ],
)
def test_refuses_a_certificate_that_upstream_refuses(
    changes: dict[str, Any], code: str, guest: TdxGuest
) -> None:
    data = certificate(guest, **changes).public_bytes(DER)
    with refuses(code):
        verify_certificate(data, service(guest), now=NOW)


@pytest.mark.parametrize("now", [NOW - 61, NOW + 86_400 + 1])
def test_n18_refuses_a_certificate_outside_its_dates(now: int, guest: TdxGuest) -> None:
    with refuses("verify.certificate.expired"):
        verify_certificate(certificate(guest).public_bytes(DER), service(guest), now=now)


def test_n17_refuses_evidence_over_another_key(guest: TdxGuest) -> None:
    other = report_data("ratls-cert", spki_der(OTHER.public_key()))
    data = certificate(guest, report_data=other).public_bytes(DER)
    with refuses("attestation.report_data"):
        verify_certificate(data, service(guest), now=NOW)


def test_n18_refuses_a_valid_certificate_whose_evidence_is_stale(guest: TdxGuest) -> None:
    """The certificate lives a year; what Intel says of the platform does not."""
    data = certificate(guest, days=365).public_bytes(DER)
    assert verify_certificate(data, service(guest), now=NOW)["is_valid"] is True
    with refuses("tdx.collateral.age"):
        verify_certificate(data, service(guest), now=NOW + 8 * 86_400)


@pytest.mark.parametrize(
    "data", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----", b"\x30\x82\x00\x00"]
)
def test_n01_refuses_what_is_no_certificate(data: bytes, guest: TdxGuest) -> None:
    with refuses("verify.certificate.malformed"):
        verify_certificate(data, service(guest), now=NOW)


def test_refuses_a_key_that_no_app_has(guest: TdxGuest) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    made = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(NOW - 60, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
        .sign(key, None)
    )
    with refuses("verify.certificate.key"):
        verify_certificate(made.public_bytes(DER), service(guest), now=NOW)


@pytest.mark.parametrize(
    ("oid", "other"),
    [("2a8648ce3d030107", "2a8648ce3d030109"), ("2a8648ce3d040302", "2a8648ce3d040309")],
    ids=["curve", "signature"],
)
def test_n32_refuses_an_algorithm_that_nobody_knows(oid: str, other: str, guest: TdxGuest) -> None:
    data = certificate(guest).public_bytes(DER).replace(bytes.fromhex(oid), bytes.fromhex(other))
    with refuses("verify.certificate.malformed"):
        verify_certificate(data, service(guest), now=NOW)


def test_refuses_a_certificate_that_names_nobody(guest: TdxGuest) -> None:
    with refuses("verify.certificate.names"):
        verify_certificate(certificate(guest, names=()).public_bytes(DER), service(guest), now=NOW)


def test_an_image_that_is_not_verified_is_told(guest: TdxGuest) -> None:
    """This mode downloads nothing, so a legacy image is never verified, whatever the policy says."""
    for policy in (DEFAULT_POLICY, UNVERIFIED):
        data = certificate(guest, config=LEGACY).public_bytes(DER)
        info = verify_certificate(data, service(guest, policy), now=NOW)["details"]["app_info"]
        assert info["os_image_hash_verified"] is False
        assert info["os_image_hash"] == "ab" * 32
        assert "os_image_hash" in info["self_asserted"]


def test_an_identity_that_cannot_be_read_is_null(guest: TdxGuest) -> None:
    data = certificate(guest, config="x").public_bytes(DER)
    assert verify_certificate(data, service(guest), now=NOW)["details"]["app_info"] is None


def test_events_are_those_of_the_evidence(guest: TdxGuest) -> None:
    events = (*EVENTS, RuntimeEvent("more", b""))
    data = certificate(guest, events=events).public_bytes(DER)
    assert verify_certificate(data, service(guest), now=NOW)["is_valid"] is True


def mutations(data: bytes) -> list[bytes]:
    return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(0, len(data), 97)]


def test_n12_no_altered_certificate_verifies(guest: TdxGuest) -> None:
    data = certificate(guest).public_bytes(DER)
    judge: Callable[[bytes], Any] = lambda altered: verify_certificate(altered, service(guest), now=NOW)  # noqa: E731 - for the loop below
    for altered in mutations(data):
        with pytest.raises(Exception) as caught:  # noqa: PT011 - the code is looked at below
            judge(altered)
        assert caught.value.code.startswith(("verify.", "ratls.")), caught.value
