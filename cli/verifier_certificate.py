"""`dstack-verifier --verify-cert`: a self-signed RA-TLS certificate and the evidence in it (spec 7.2)."""

from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from cli.evidence_file import read_certificate
from functions.verify.service import VerifyService
from shared.attestation.identity import info_of
from shared.attestation.image import check_image
from shared.attestation.verdict import Status
from shared.attestation.verify import VerifiedAttestation
from shared.ec_key import ec_key
from shared.errors import DstackError, InvalidEvidence
from shared.ratls.extensions import read_extensions

_TLS_USAGES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def verify_certificate(data: bytes, service: VerifyService, *, now: int) -> dict[str, Any]:
    """Return upstream's answer for a certificate (PEM or DER) that holds at `now` (unix seconds).

    1. It signed itself, is valid at `now`, may make digital signatures for TLS, and names somebody.
    2. Its evidence carries the hash of its key and verifies.

    Raises `InvalidEvidence`: `verify.certificate.*`, `verify.file.*`, `ratls.*`, and what verifying raises.
    """
    certificate = _parse(data)
    _check_self_signed(certificate, now)
    attestation, report_data = read_certificate(data)
    verified = service.verify_evidence(attestation, now, report_data=report_data)
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return {
        "is_valid": True,
        "details": {
            "tee_variant": verified.verdict.platform,
            "report_data": verified.attestation.report_data.hex(),
            "public_key_der": key.hex(),
            "app_info": _app_info(verified),
        },
    }


def _app_info(verified: VerifiedAttestation) -> dict[str, Any] | None:
    """Return the identity, without the scripts as upstream has it, and whether its image was verified."""
    try:
        checked, image_verified = check_image(verified), True
    except DstackError:
        checked, image_verified = verified, False
    try:
        info = info_of(checked).to_json()
    except DstackError:
        return None
    del info["init_script_hashes"]
    image_verified = image_verified and checked.verdict.lanes.os_image.status is Status.VERIFIED
    return {**info, "os_image_hash_verified": image_verified}


def _parse(data: bytes) -> x509.Certificate:
    try:
        if b"-----BEGIN" in data[:64]:
            return x509.load_pem_x509_certificate(data)
        return x509.load_der_x509_certificate(data)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise InvalidEvidence("verify.certificate.malformed", "file is not one certificate") from error


def _check_self_signed(certificate: x509.Certificate, now: int) -> None:
    try:
        key = ec_key(certificate)
        algorithm = certificate.signature_hash_algorithm
        if key is None or algorithm is None:
            raise InvalidEvidence("verify.certificate.key", "certificate's key is not an elliptic curve key")
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, ECDSA(algorithm))
        extensions = read_extensions(certificate)
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except InvalidSignature as error:
        raise InvalidEvidence("verify.certificate.signature", "certificate is not self-signed") from error
    except x509.ExtensionNotFound as error:
        raise InvalidEvidence("verify.certificate.usage", f"certificate lacks {error.oid._name}") from error  # noqa: SLF001 - its only name
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidEvidence("verify.certificate.malformed", "certificate cannot be read") from error
    if not certificate.not_valid_before_utc.timestamp() <= now <= certificate.not_valid_after_utc.timestamp():
        raise InvalidEvidence("verify.certificate.expired", f"certificate is not valid at {now}")
    if not usage.digital_signature or not any(wanted in extended for wanted in _TLS_USAGES):
        raise InvalidEvidence("verify.certificate.usage", "certificate is not for tls signatures")
    if not names:
        raise InvalidEvidence("verify.certificate.names", "certificate names nobody")
