"""Certificates that we issue (spec kms section 4.2).

P-256 keys, ecdsa-with-SHA256, v3. Unlike upstream's they start near now instead of in 1975 and carry an
AuthorityKeyIdentifier where there is an issuer, which strict OpenSSL clients want and rustls ignores.
"""

from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from shared.errors import ConfigError
from shared.ratls.extensions import (
    USAGE_APP_CA,
    USAGE_KMS_RPC,
    app_id_extension,
    attestation_extension,
    usage_extension,
)

Issuer = tuple[x509.Certificate, EllipticCurvePrivateKey]

ROOT_CA_NAME: Final = "Dstack KMS CA"
TEMP_CA_NAME: Final = "Dstack Client Temp CA"
APP_CA_NAME: Final = "Dstack App CA"
CLIENT_NAME: Final = "RA-TLS TEMP Cert"
LONG_DOMAIN_NAME: Final = "Dstack KMS"
CA_ORGANIZATION: Final = "Dstack"

CA_LIFETIME: Final = 3650 * 86_400  # upstream's ten years: the root is pinned by whoever trusts it
LEAF_LIFETIME: Final = 86_400  # evidence in a leaf is fresh for an hour, so a day is already generous
BACKDATE: Final = 300  # tolerance for a peer whose clock is behind

_MAX_COMMON_NAME: Final = 64  # X.520's upper bound
_MAX_DOMAIN: Final = 253  # of a DNS name
_MAX_TIME: Final = 253_402_300_799  # the last second of the year 9999


def self_signed_ca(
    key: EllipticCurvePrivateKey, common_name: str, path_length: int, not_before: int, not_after: int
) -> x509.Certificate:
    """Return a CA certificate for `key`, signed by itself. Times are unix seconds.

    The KMS root has path length 1, the temp CA 0. Raises `ConfigError("ratls.time.range")`.
    """
    name = _ca_name(common_name)
    builder = certificate_builder(
        key.public_key(), subject=name, issuer=name, not_before=not_before, not_after=not_after
    )
    return _as_ca(builder, key, path_length).sign(key, SHA256())


def attested_ca(
    key: EllipticCurvePrivateKey, common_name: str, *, path_length: int, attestation: bytes, now: int
) -> x509.Certificate:
    """Return a CA certificate for `key`, signed by itself, with an envelope that binds a guest to the key.

    Raises `ConfigError("ratls.time.range")`.
    """
    name = _ca_name(common_name)
    builder = certificate_builder(
        key.public_key(),
        subject=name,
        issuer=name,
        not_before=now - BACKDATE,
        not_after=now + CA_LIFETIME,
    )
    builder = _as_ca(builder, key, path_length)
    return builder.add_extension(attestation_extension(attestation), critical=False).sign(key, SHA256())


def app_ca_certificate(key: EllipticCurvePrivateKey, *, app_id: bytes, issuer: Issuer) -> x509.Certificate:
    """Return the CA certificate of an app (20 bytes), under the KMS's root and valid as long as that is."""
    root = issuer[0]
    builder = certificate_builder(
        key.public_key(),
        subject=_ca_name(APP_CA_NAME),
        issuer=root.subject,
        not_before=int(root.not_valid_before_utc.timestamp()),
        not_after=int(root.not_valid_after_utc.timestamp()),
    )
    builder = builder.add_extension(authority_identifier(issuer), critical=False)
    builder = _as_ca(builder, key, 0)
    builder = builder.add_extension(app_id_extension(app_id), critical=False)
    builder = builder.add_extension(usage_extension(USAGE_APP_CA), critical=False)
    return builder.sign(issuer[1], SHA256())


def rpc_certificate(
    key: EllipticCurvePrivateKey,
    *,
    domain: str,
    issuer: Issuer,
    attestation: bytes | None,
    now: int,
    lifetime: int = LEAF_LIFETIME,
) -> x509.Certificate:
    """Return the KMS server certificate: `domain` as its only SAN, usage `kms:rpc`, and the evidence.

    `attestation` is an envelope over `ratls_report_data` of `key`; None leaves it out (development).
    Raises `ConfigError`: `ratls.domain.invalid`, `ratls.time.range`.
    """
    _check_domain(domain)
    # A longer name stands in full where clients look for it; the common name is for people.
    name = domain if len(domain) <= _MAX_COMMON_NAME else LONG_DOMAIN_NAME
    builder = _leaf(key, common_name=name, issuer=issuer, now=now, lifetime=lifetime)
    builder = builder.add_extension(x509.SubjectAlternativeName([general_name(domain)]), critical=False)
    builder = builder.add_extension(key_usage(ca=False), critical=True)
    builder = builder.add_extension(usage_extension(USAGE_KMS_RPC), critical=False)
    if attestation is not None:
        builder = builder.add_extension(attestation_extension(attestation), critical=False)
    return builder.sign(issuer[1], SHA256())


def client_certificate(
    key: EllipticCurvePrivateKey,
    *,
    attestation: bytes | None,
    issuer: Issuer | None,
    now: int,
    lifetime: int = LEAF_LIFETIME,
) -> x509.Certificate:
    """Return an RA-TLS client certificate issued by the temp CA, or by itself when `issuer` is None.

    Raises `ConfigError("ratls.time.range")`.
    """
    builder = _leaf(key, common_name=CLIENT_NAME, issuer=issuer, now=now, lifetime=lifetime)
    builder = builder.add_extension(key_usage(ca=False), critical=True)
    if attestation is not None:
        builder = builder.add_extension(attestation_extension(attestation), critical=False)
    return builder.sign(issuer[1] if issuer else key, SHA256())


def spki_der(key: EllipticCurvePublicKey) -> bytes:
    """Return the SubjectPublicKeyInfo in DER, 91 bytes for P-256."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _leaf(
    key: EllipticCurvePrivateKey, *, common_name: str, issuer: Issuer | None, now: int, lifetime: int
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = certificate_builder(
        key.public_key(),
        subject=subject,
        issuer=issuer[0].subject if issuer else subject,
        not_before=now - BACKDATE,
        not_after=now + lifetime,
    )
    if issuer is None:
        return builder
    return builder.add_extension(authority_identifier(issuer), critical=False)


def certificate_builder(
    public_key: EllipticCurvePublicKey,
    *,
    subject: x509.Name,
    issuer: x509.Name,
    not_before: int,
    not_after: int,
) -> x509.CertificateBuilder:
    """Return the start of every certificate: names, key, serial number and validity in unix seconds.

    Raises `ConfigError("ratls.time.range")`.
    """
    if not_after < not_before:
        raise ConfigError("ratls.time.range", f"validity ends at {not_after}, before {not_before}")
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=_serial(public_key),
        not_valid_before=_utc(not_before),
        not_valid_after=_utc(not_after),
    )


def _serial(public_key: EllipticCurvePublicKey) -> int:
    point = public_key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return int.from_bytes(sha256(point).digest()[:20]) & ~(1 << 159)


def _key_identifier(public_key: EllipticCurvePublicKey) -> bytes:
    return sha256(spki_der(public_key)).digest()[:20]


def _ca_name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, CA_ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _as_ca(
    builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey, path_length: int
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier(_key_identifier(key.public_key()))
    return (
        builder.add_extension(key_usage(ca=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    )


def authority_identifier(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    """Return the extension that names the issuer's key."""
    certificate, key = issuer
    try:
        digest = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        digest = _key_identifier(key.public_key())
    return x509.AuthorityKeyIdentifier(digest, None, None)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    """Return what the key may sign: certificates too if it is a CA's."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(domain: str) -> x509.GeneralName:
    """Return an IP address where the text is one, else a DNS name."""
    try:
        return x509.IPAddress(ip_address(domain))
    except ValueError:
        return x509.DNSName(domain)


def _check_domain(domain: str) -> None:
    if not 0 < len(domain) <= _MAX_DOMAIN or not domain.isascii():
        raise ConfigError("ratls.domain.invalid", f"the domain is not 1 to {_MAX_DOMAIN} ascii characters")


def _utc(seconds: int) -> datetime:
    if not 0 <= seconds <= _MAX_TIME:
        raise ConfigError("ratls.time.range", f"{seconds} is not a time a certificate can hold")
    return datetime.fromtimestamp(seconds, tz=UTC)
