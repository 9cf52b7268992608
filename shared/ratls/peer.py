"""Who is at the other end of an attested TLS connection (spec kms section 4.6 and 4.7).

Pure decisions over a leaf's DER and a trusted `now`. TLS has proven possession of the leaf's key before
(`shared.ratls.tls`). What is still owed by the caller after these checks: verify the returned envelope with
`shared.attestation.verify`, with `ratls_report_data` of the same leaf as the expected report data. Without
that step the envelope could be anybody's.
"""

from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError, InvalidEvidence
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import USAGE_KMS_RPC, read_attestation, read_usage
from shared.ratls.leaf import (
    Leaf,
    check_extended_usage,
    check_hostname,
    check_issuer,
    check_validity,
    p256_key,
    parse_certificate,
    pinned_root,
    validity_of,
    verify_p256,
)


class ClientCertificate(msgspec.Struct, frozen=True):
    """What a client's certificate says, once it was found whole.

    `envelope` is None where it carries no evidence; `report_data` is what evidence in it must be over; the
    times are the first and the last unix second of its validity.
    """

    envelope: bytes | None
    report_data: bytes
    not_before: int
    not_after: int


def check_client_certificate(leaf_der: bytes, *, temp_ca_der: bytes, now: int) -> ClientCertificate:
    """Return what an RA-TLS client presents, after these checks.

    1. the certificate parses exactly, is v3, on P-256, for an end entity, and valid at `now`;
    2. extended key usage, when present, includes client authentication;
    3. it was issued by the temp CA, or by itself, and that signature verifies. The temp CA's key is public,
       so neither is an identity: it only means that the certificate is whole.

    Raises `InvalidEvidence("ratls.*")`.
    """
    leaf = Leaf(leaf_der, now)
    check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.CLIENT_AUTH)
    if leaf.certificate.issuer == leaf.certificate.subject:
        issuer_key = leaf.key
    else:
        temp_ca, issuer_key = _issuer(temp_ca_der)
        check_issuer(leaf.certificate, temp_ca)
    verify_p256(issuer_key, leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    expected = report_data(RATLS_CERT, spki_der(leaf.key))
    return ClientCertificate(read_attestation(leaf.extensions), expected, *validity_of(leaf.certificate))


@lru_cache(maxsize=1)  # a KMS has one temp CA
def _issuer(certificate_der: bytes) -> tuple[x509.Certificate, EllipticCurvePublicKey]:
    certificate = parse_certificate(certificate_der)
    return certificate, p256_key(certificate)


def validity(certificate_der: bytes) -> tuple[int, int]:
    """Return the first and the last unix second at which a certificate is valid.

    For a caller that keeps the outcome of a check: nothing else in it depends on the time. Raises as parsing
    does in the checks.
    """
    return validity_of(parse_certificate(certificate_der))


def check_kms_certificate(leaf_der: bytes, *, root_ca_pem: bytes, hostname: str, now: int) -> bytes:
    """Return the attestation envelope of a KMS server, after these checks.

    1. the pinned root is one P-256 CA certificate, valid at `now`;
    2. the leaf parses exactly, is v3, on P-256, for an end entity, and valid at `now`;
    3. it was issued by exactly that root, without an intermediate, and the signature verifies;
    4. extended key usage, when present, includes server authentication;
    5. its SAN holds `hostname` literally (no wildcards), as a DNS name or an IP address;
    6. its special usage is `kms:rpc`: every app gets certificates under the same root, and only this marks
       the KMS among them;
    7. it carries an attestation.

    Raises `InvalidEvidence("ratls.*")`, and `ConfigError("ratls.root.*")` for an unusable pin.
    """
    root = pinned_root(root_ca_pem)
    check_validity(root, now, "ratls.root")
    leaf = Leaf(leaf_der, now)
    check_issuer(leaf.certificate, root)
    verify_p256(p256_key(root), leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.SERVER_AUTH)
    check_hostname(leaf.extensions, hostname)
    return _kms_evidence(leaf)


def check_kms_certificate_of_key(leaf_der: bytes, *, root_spki: bytes, hostname: str, now: int) -> bytes:
    """Return the attestation envelope of a KMS server whose root CA is pinned by its key, SPKI in DER.

    That is how an app-compose pins one (`key_provider_id`). Checks all that `check_kms_certificate` does
    except the root certificate's own validity and name, which are not at hand. Raises as it does, with
    `ConfigError("ratls.root.key")` for a pin that is no P-256 key.
    """
    try:
        root_key = load_der_public_key(root_spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("ratls.root.key", "the pinned root key is no public key") from error
    if not isinstance(root_key, EllipticCurvePublicKey) or not isinstance(root_key.curve, SECP256R1):
        raise ConfigError("ratls.root.key", "the pinned root key is not on p-256")
    leaf = Leaf(leaf_der, now)
    verify_p256(root_key, leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.SERVER_AUTH)
    check_hostname(leaf.extensions, hostname)
    return _kms_evidence(leaf)


def check_source_kms_certificate(leaf_der: bytes, *, now: int) -> bytes:
    """Return the attestation envelope of a KMS whose root is not known yet, as onboarding meets it.

    Checks all that `check_kms_certificate` does except issuer and hostname: who the server is rests on its
    evidence, and on `check_issued_by` once it has handed over its root. Raises `InvalidEvidence("ratls.*")`.
    """
    leaf = Leaf(leaf_der, now)
    check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.SERVER_AUTH)
    return _kms_evidence(leaf)


def check_issued_by(leaf_der: bytes, issuer_key: EllipticCurvePublicKey) -> None:
    """Check that `issuer_key` signed a certificate. Raises `InvalidEvidence("ratls.signature")`."""
    leaf = parse_certificate(leaf_der)
    verify_p256(issuer_key, leaf.signature, leaf.tbs_certificate_bytes)


def _kms_evidence(leaf: Leaf) -> bytes:
    usage = read_usage(leaf.extensions)
    if usage != USAGE_KMS_RPC:
        raise InvalidEvidence("ratls.usage", f"certificate usage is {usage!r}, expected {USAGE_KMS_RPC!r}")
    envelope = read_attestation(leaf.extensions)
    if envelope is None:
        raise InvalidEvidence("ratls.attestation.missing", "the kms certificate carries no attestation")
    return envelope


def ratls_report_data(certificate_der: bytes) -> bytes:
    """Return the 64 bytes of report data that evidence in this certificate must carry (section 4.3)."""
    return report_data(RATLS_CERT, spki_der(p256_key(parse_certificate(certificate_der))))
