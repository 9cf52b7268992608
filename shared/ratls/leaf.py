"""Strict reading of one certificate, and the checks that every decision about a peer begins with.

A certificate has one spelling here: what binds evidence to a key, or an app to its CA, is bytes.
"""

from datetime import datetime
from ipaddress import ip_address
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, SignatureAlgorithmOID

from shared.ec_key import ec_key
from shared.errors import ConfigError, InvalidEvidence
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import read_extensions

# OpenSSL's own default limit on a peer's certificate list: nothing larger leaves a handshake.
MAX_CERTIFICATE_BYTES: Final = 100 * 1024

_KNOWN_CRITICAL: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
_ECDSA_SHA256: Final = ECDSA(SHA256())

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


class Leaf:
    """A parsed end-entity certificate that passed every check that does not depend on its issuer."""

    def __init__(self, der: bytes, now: int) -> None:
        self.certificate = parse_certificate(der)
        self.key = p256_key(self.certificate)
        self.extensions = read_extensions(self.certificate)
        check_critical(self.extensions)
        _check_end_entity(self.extensions)
        check_validity(self.certificate, now, "ratls.certificate")


def verify_p256(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Verify a DER ECDSA signature with SHA-256, or raise `InvalidEvidence("ratls.signature")`."""
    try:
        key.verify(signature, message, _ECDSA_SHA256)
    except InvalidSignature as error:
        raise InvalidEvidence("ratls.signature", "the issuer's signature does not verify") from error


def parse_certificate(der: bytes) -> x509.Certificate:
    """Return one certificate, every byte of it accounted for. Raises `InvalidEvidence("ratls.*")`."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidEvidence(
            "ratls.certificate.size",
            f"certificate has {len(der)} bytes, expected at most {MAX_CERTIFICATE_BYTES}",
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
        # names and dates are parsed on first use
        _ = certificate.subject, certificate.issuer, validity_of(certificate)
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise InvalidEvidence(
            "ratls.certificate.malformed", "certificate is not exactly one der x.509 certificate"
        ) from error
    # The signature is the last element: a bit string that claims unused bits would be a second spelling.
    if not der.endswith(b"\0" + certificate.signature):
        raise InvalidEvidence(
            "ratls.certificate.malformed", "the certificate's signature is not a whole number of bytes"
        )
    if certificate.version is not x509.Version.v3:
        raise InvalidEvidence(
            "ratls.certificate.version", f"certificate version is {certificate.version.name}, expected v3"
        )
    if serial <= 0:
        raise InvalidEvidence("ratls.certificate.malformed", "certificate serial number is not positive")
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        raise InvalidEvidence(
            "ratls.signature.algorithm",
            f"certificate is signed with {certificate.signature_algorithm_oid.dotted_string}, "
            "expected ecdsa-with-sha256",
        )
    return certificate


def p256_key(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    """Return the key, in the one spelling that evidence binds. Raises `InvalidEvidence("ratls.key")`."""
    try:
        key = ec_key(certificate)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidEvidence("ratls.key", "the certificate's public key does not parse") from error
    if key is None or not isinstance(key.curve, SECP256R1):
        raise InvalidEvidence("ratls.key", "the certificate's public key is not on p-256")
    # report_data binds the bytes of the key: a second spelling (compressed point) must not exist.
    if spki_der(key) != _spki(certificate.tbs_certificate_bytes):
        raise InvalidEvidence("ratls.key", "the certificate's public key is not an uncompressed point")
    return key


def _spki(tbs: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a version 3 TBSCertificate that was parsed already, as it came."""
    at = _content(tbs, 0)[0]
    for _ in ("version", "serial", "signature", "issuer", "validity", "subject"):
        at = _content(tbs, at)[1]
    return tbs[at : _content(tbs, at)[1]]


def _content(der: bytes, at: int) -> tuple[int, int]:
    """Return where the content of the DER element at `at` starts and ends."""
    length, start = der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, start = int.from_bytes(der[start : start + size]), start + size
    return start, start + length


def check_critical(extensions: x509.Extensions) -> None:
    """Refuse a critical extension that is not known here. Raises `ratls.extension.critical`."""
    for extension in extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise InvalidEvidence(
                "ratls.extension.critical",
                f"certificate extension {extension.oid.dotted_string} is critical and unknown",
            )


def _check_end_entity(extensions: x509.Extensions) -> None:
    constraints = find_extension(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise InvalidEvidence("ratls.leaf.is_ca", "certificate is a ca, expected an end entity")
    usage = find_extension(extensions, x509.KeyUsage)
    if usage is not None and (usage.key_cert_sign or not usage.digital_signature):
        raise InvalidEvidence("ratls.key_usage", "key usage must allow digital signatures and no ca use")


def check_extended_usage(extensions: x509.Extensions, wanted: x509.ObjectIdentifier) -> None:
    """Check that extended key usage, where there is one, has `wanted`. Raises `ratls.extended_key_usage`."""
    usages = find_extension(extensions, x509.ExtendedKeyUsage)
    if (
        usages is not None
        and wanted not in usages
        and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages
    ):
        raise InvalidEvidence(
            "ratls.extended_key_usage", f"extended key usage does not include {wanted.dotted_string}"
        )


def check_validity(certificate: x509.Certificate, now: int, code: str) -> None:
    """Check that `now` is in the period. Raises `InvalidEvidence`, `code` followed by what is wrong."""
    not_before, not_after = validity_of(certificate)
    if now < not_before:
        raise InvalidEvidence(
            f"{code}.not_yet_valid", f"certificate is valid from {not_before}, now is {now}"
        )
    if now > not_after:
        raise InvalidEvidence(f"{code}.expired", f"certificate was valid until {not_after}, now is {now}")


def validity_of(certificate: x509.Certificate) -> tuple[int, int]:
    """Return the first and the last second, unix."""
    return _unix(certificate.not_valid_before_utc), _unix(certificate.not_valid_after_utc)


def check_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    """Check the issuer's name, not its signature. Raises `InvalidEvidence("ratls.issuer")`."""
    if certificate.issuer != issuer.subject:
        raise InvalidEvidence(
            "ratls.issuer",
            f"certificate was issued by {certificate.issuer.rfc4514_string()!r}, "
            f"expected {issuer.subject.rfc4514_string()!r}",
        )


def check_hostname(extensions: x509.Extensions, hostname: str) -> None:
    """Check that a certificate is for a host, literally. Raises `InvalidEvidence("ratls.hostname")`."""
    names = find_extension(extensions, x509.SubjectAlternativeName)
    try:
        wanted_ip = ip_address(hostname)
    except ValueError:
        wanted = hostname.removesuffix(".").lower()
        found = names is not None and any(
            name.lower() == wanted for name in names.get_values_for_type(x509.DNSName)
        )
    else:
        found = names is not None and wanted_ip in names.get_values_for_type(x509.IPAddress)
    if not found:
        raise InvalidEvidence("ratls.hostname", f"certificate is not for {hostname!r}")


def pinned_root(pem: bytes) -> x509.Certificate:
    """Return the one P-256 CA certificate of a configured text. Raises `ConfigError("ratls.root.*")`."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError("ratls.root.malformed", "the pinned root is not a pem certificate") from error
    if len(certificates) != 1:
        raise ConfigError(
            "ratls.root.count", f"the pinned root holds {len(certificates)} certificates, expected 1"
        )
    try:
        root = parse_certificate(certificates[0].public_bytes(Encoding.DER))
        p256_key(root)
        extensions = read_extensions(root)
    except InvalidEvidence as error:
        raise ConfigError("ratls.root.malformed", f"the pinned root: {error.message}") from error
    constraints = find_extension(extensions, x509.BasicConstraints)
    usage = find_extension(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise ConfigError("ratls.root.not_ca", "the pinned root is not a ca certificate")
    return root


def find_extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    """Return a standard extension, or None."""
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())
