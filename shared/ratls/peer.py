"""Who is at the other end of an attested TLS connection (spec kms section 4.6 and 4.7).

Pure decisions over a leaf's DER and a trusted `now`. TLS has proven possession of the leaf's key before
(`shared.ratls.tls`). What is still owed by the caller after these checks: verify the returned envelope with
`shared.attestation.verify`, with `ratls_report_data` of the same leaf as the expected report data. Without
that step the envelope could be anybody's.
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

from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import ConfigError, InvalidEvidence
from shared.ratls.certificates import spki_der
from shared.ratls.extensions import USAGE_KMS_RPC, read_attestation, read_extensions, read_usage

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


class _Leaf:
    """A parsed end-entity certificate that passed every check that does not depend on its issuer."""

    def __init__(self, der: bytes, now: int) -> None:
        self.certificate = _parse(der)
        self.key = _p256_key(self.certificate)
        self.extensions = read_extensions(self.certificate)
        _check_critical(self.extensions)
        _check_end_entity(self.extensions)
        _check_validity(self.certificate, now, "ratls.certificate")


def check_client_certificate(leaf_der: bytes, *, temp_ca_der: bytes, now: int) -> bytes | None:
    """Return the attestation envelope that an RA-TLS client presents, or None when it has no evidence.

    1. the certificate parses exactly, is v3, on P-256, for an end entity, and valid at `now`;
    2. extended key usage, when present, includes client authentication;
    3. it was issued by the temp CA, or by itself, and that signature verifies. The temp CA's key is public,
       so neither is an identity: it only means that the certificate is whole.

    Raises `InvalidEvidence("ratls.*")`.
    """
    leaf = _Leaf(leaf_der, now)
    _check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.CLIENT_AUTH)
    if leaf.certificate.issuer == leaf.certificate.subject:
        issuer_key = leaf.key
    else:
        temp_ca = _parse(temp_ca_der)
        _check_issuer(leaf.certificate, temp_ca)
        issuer_key = _p256_key(temp_ca)
    verify_p256(issuer_key, leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    return read_attestation(leaf.extensions)


def validity(certificate_der: bytes) -> tuple[int, int]:
    """Return the first and the last unix second at which a certificate is valid.

    For a caller that keeps the outcome of a check: nothing else in it depends on the time. Raises as parsing
    does in the checks.
    """
    return _validity(_parse(certificate_der))


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
    root = _pinned_root(root_ca_pem)
    _check_validity(root, now, "ratls.root")
    leaf = _Leaf(leaf_der, now)
    _check_issuer(leaf.certificate, root)
    verify_p256(_p256_key(root), leaf.certificate.signature, leaf.certificate.tbs_certificate_bytes)
    _check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.SERVER_AUTH)
    _check_hostname(leaf.extensions, hostname)
    return _kms_evidence(leaf)


def check_source_kms_certificate(leaf_der: bytes, *, now: int) -> bytes:
    """Return the attestation envelope of a KMS whose root is not known yet, as onboarding meets it.

    Checks all that `check_kms_certificate` does except issuer and hostname: who the server is rests on its
    evidence, and on `check_issued_by` once it has handed over its root. Raises `InvalidEvidence("ratls.*")`.
    """
    leaf = _Leaf(leaf_der, now)
    _check_extended_usage(leaf.extensions, ExtendedKeyUsageOID.SERVER_AUTH)
    return _kms_evidence(leaf)


def check_issued_by(leaf_der: bytes, issuer_key: EllipticCurvePublicKey) -> None:
    """Check that `issuer_key` signed a certificate. Raises `InvalidEvidence("ratls.signature")`."""
    leaf = _parse(leaf_der)
    verify_p256(issuer_key, leaf.signature, leaf.tbs_certificate_bytes)


def _kms_evidence(leaf: _Leaf) -> bytes:
    usage = read_usage(leaf.extensions)
    if usage != USAGE_KMS_RPC:
        raise InvalidEvidence("ratls.usage", f"certificate usage is {usage!r}, expected {USAGE_KMS_RPC!r}")
    envelope = read_attestation(leaf.extensions)
    if envelope is None:
        raise InvalidEvidence("ratls.attestation.missing", "the kms certificate carries no attestation")
    return envelope


def ratls_report_data(certificate_der: bytes) -> bytes:
    """Return the 64 bytes of report data that evidence in this certificate must carry (section 4.3)."""
    return report_data(RATLS_CERT, spki_der(_p256_key(_parse(certificate_der))))


def verify_p256(key: EllipticCurvePublicKey, signature: bytes, message: bytes) -> None:
    """Verify a DER ECDSA signature with SHA-256, or raise `InvalidEvidence("ratls.signature")`."""
    try:
        key.verify(signature, message, _ECDSA_SHA256)
    except InvalidSignature as error:
        raise InvalidEvidence("ratls.signature", "the issuer's signature does not verify") from error


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise InvalidEvidence(
            "ratls.certificate.size",
            f"certificate has {len(der)} bytes, expected at most {MAX_CERTIFICATE_BYTES}",
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial = certificate.serial_number
        # names and dates are parsed on first use
        _ = certificate.subject, certificate.issuer, _validity(certificate)
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


def _p256_key(certificate: x509.Certificate) -> EllipticCurvePublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidEvidence("ratls.key", "the certificate's public key does not parse") from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
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


def _check_critical(extensions: x509.Extensions) -> None:
    for extension in extensions:
        if extension.critical and extension.oid not in _KNOWN_CRITICAL:
            raise InvalidEvidence(
                "ratls.extension.critical",
                f"certificate extension {extension.oid.dotted_string} is critical and unknown",
            )


def _check_end_entity(extensions: x509.Extensions) -> None:
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise InvalidEvidence("ratls.leaf.is_ca", "certificate is a ca, expected an end entity")
    usage = _find(extensions, x509.KeyUsage)
    if usage is not None and (usage.key_cert_sign or not usage.digital_signature):
        raise InvalidEvidence("ratls.key_usage", "key usage must allow digital signatures and no ca use")


def _check_extended_usage(extensions: x509.Extensions, wanted: x509.ObjectIdentifier) -> None:
    usages = _find(extensions, x509.ExtendedKeyUsage)
    if (
        usages is not None
        and wanted not in usages
        and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages
    ):
        raise InvalidEvidence(
            "ratls.extended_key_usage", f"extended key usage does not include {wanted.dotted_string}"
        )


def _check_validity(certificate: x509.Certificate, now: int, code: str) -> None:
    not_before, not_after = _validity(certificate)
    if now < not_before:
        raise InvalidEvidence(
            f"{code}.not_yet_valid", f"certificate is valid from {not_before}, now is {now}"
        )
    if now > not_after:
        raise InvalidEvidence(f"{code}.expired", f"certificate was valid until {not_after}, now is {now}")


def _validity(certificate: x509.Certificate) -> tuple[int, int]:
    return _unix(certificate.not_valid_before_utc), _unix(certificate.not_valid_after_utc)


def _check_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if certificate.issuer != issuer.subject:
        raise InvalidEvidence(
            "ratls.issuer",
            f"certificate was issued by {certificate.issuer.rfc4514_string()!r}, "
            f"expected {issuer.subject.rfc4514_string()!r}",
        )


def _check_hostname(extensions: x509.Extensions, hostname: str) -> None:
    names = _find(extensions, x509.SubjectAlternativeName)
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


def _pinned_root(pem: bytes) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError("ratls.root.malformed", "the pinned root is not a pem certificate") from error
    if len(certificates) != 1:
        raise ConfigError(
            "ratls.root.count", f"the pinned root holds {len(certificates)} certificates, expected 1"
        )
    try:
        root = _parse(certificates[0].public_bytes(Encoding.DER))
        _p256_key(root)
        extensions = read_extensions(root)
    except InvalidEvidence as error:
        raise ConfigError("ratls.root.malformed", f"the pinned root: {error.message}") from error
    constraints = _find(extensions, x509.BasicConstraints)
    usage = _find(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise ConfigError("ratls.root.not_ca", "the pinned root is not a ca certificate")
    return root


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())
