"""The signature section of an EIF, and PCR8 (measurement spec 1.5, 2; trap 4).

CBOR: an array with one map of the PEM certificate and an untagged COSE_Sign1, both as arrays of integers.
Only PCR0 is signed. Nobody vouches for the certificate: what holds is that its key's owner signed this image,
and PCR8 lets a policy name the certificate.
"""

from hashlib import sha384
from typing import Final, NoReturn, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from shared.attestation.cbor import Value, decode_strict
from shared.ec_key import ec_key
from shared.errors import ConfigError, InvalidEvidence
from shared.measurement.eif_registers import extended

# A P-521 certificate with its signature takes some 5 kB as integers; QEMU and AWS allow as much as this.
MAX_SIGNATURE: Final = 32768

_MAP_KEYS: Final = {"signing_certificate", "signature"}
# What `cryptography` raises on certificates that it cannot read; TypeError comes from names.
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


class Algorithm(msgspec.Struct, frozen=True):
    """One of the three: `cose` is its number, `scalar` the size of r and of s in bytes."""

    cose: int
    curve: type[ec.EllipticCurve]
    digest: HashAlgorithm
    scalar: int

    @property
    def protected(self) -> bytes:
        """The protected header {1: alg}."""
        return b"\xa1\x01" + _head(1, -1 - self.cose)


_ALGORITHMS: Final = (
    Algorithm(-7, ec.SECP256R1, SHA256(), 32),
    Algorithm(-35, ec.SECP384R1, SHA384(), 48),
    Algorithm(-36, ec.SECP521R1, SHA512(), 66),
)


class EifSignature(msgspec.Struct, frozen=True):
    """A parsed signature section, not verified. Times are unix seconds, `signature` is r || s."""

    certificate_pem: bytes
    certificate_der: bytes
    certificate: x509.Certificate
    not_before: int
    not_after: int
    algorithm: Algorithm
    payload: bytes
    signature: bytes

    @property
    def pcr8(self) -> bytes:
        """The 48 bytes that the platform extends PCR8 to."""
        return extended(sha384(self.certificate_der).digest())

    @property
    def subject(self) -> str:
        """The certificate's subject, for people: no one vouches for it."""
        try:
            return self.certificate.subject.rfc4514_string()
        except _UNREADABLE:
            return "unreadable name"


class EifSigner(Protocol):
    """Whoever holds the signing key: a file (`KeySigner`), or a key service."""

    @property
    def certificate_pem(self) -> bytes:
        """The certificate of the key."""

    @property
    def algorithm(self) -> int:
        """The COSE algorithm: -7 (P-256), -35 (P-384) or -36 (P-521)."""

    def sign(self, text: bytes) -> bytes:
        """Return r || s over `text`, with the hash that the algorithm names."""


class KeySigner:
    """Signs with an ECDSA key at hand; the same image gives the same signature (RFC 6979).

    Raises `ConfigError`: `eif.signer.curve`, `eif.signer.certificate` (unreadable, or another key's).
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate_pem: bytes) -> None:
        algorithm = next((one for one in _ALGORITHMS if isinstance(key.curve, one.curve)), None)
        if algorithm is None:
            raise ConfigError(
                "eif.signer.curve", f"signing key is on {key.curve.name}, expected p-256, p-384 or p-521"
            )
        try:
            certified = _certificate(certificate_pem)[0].public_key()
        except (InvalidEvidence, *_UNREADABLE) as error:
            raise ConfigError(
                "eif.signer.certificate", "signing certificate is not one pem certificate"
            ) from error
        if certified != key.public_key():
            raise ConfigError("eif.signer.certificate", "signing certificate is for another key")
        self._key = key
        self._parameters = algorithm
        self.certificate_pem = certificate_pem
        self.algorithm = algorithm.cose

    def sign(self, text: bytes) -> bytes:
        """Return r || s."""
        method = ec.ECDSA(self._parameters.digest, deterministic_signing=True)
        r, s = decode_dss_signature(self._key.sign(text, method))
        return r.to_bytes(self._parameters.scalar, "big") + s.to_bytes(self._parameters.scalar, "big")


def signed_payload(pcr0: bytes) -> bytes:
    """Return the CBOR that a signature covers: register 0 and its 48 bytes."""
    return b"\xa2" + _text("register_index") + b"\x00" + _text("register_value") + _integers(pcr0)


def sign_image(signer: EifSigner, pcr0: bytes) -> tuple[bytes, EifSignature]:
    """Sign `pcr0`; return the section, and what a reader finds in it.

    It is verified but for its dates: a signer cannot make one that is refused later. Raises
    `ConfigError("eif.signer.algorithm")`, what `signer` raises, and as the reader and `verify_signature` do.
    """
    algorithm = _algorithm(signer.algorithm)
    if algorithm is None:
        raise ConfigError(
            "eif.signer.algorithm", f"signer's algorithm is {signer.algorithm}, expected -7, -35 or -36"
        )
    protected = algorithm.protected
    payload = signed_payload(pcr0)
    signature = signer.sign(_signed_text(protected, payload))
    sign1 = b"\x84" + _byte_string(protected) + b"\xa0" + _byte_string(payload) + _byte_string(signature)
    section = (
        b"\x81\xa2"
        + _text("signing_certificate")
        + _integers(signer.certificate_pem)
        + _text("signature")
        + _integers(sign1)
    )
    made = parse_signature(section)
    verify_signature(made, pcr0, at=made.not_before)
    return section, made


def parse_signature(raw: bytes) -> EifSignature:
    """Read a signature section.

    Raises `InvalidEvidence`: `eif.signature.size`, `eif.signature.shape`, `eif.signature.certificate`,
    `eif.signature.algorithm`, `eif.signature.length`, or a `cbor.*` code.
    """
    if len(raw) > MAX_SIGNATURE:
        raise InvalidEvidence(
            "eif.signature.size", f"signature section has {len(raw)} bytes, expected at most {MAX_SIGNATURE}"
        )
    entries = decode_strict(raw)
    if not isinstance(entries, list) or len(entries) != 1:
        _refuse_shape("is not an array of one signature")
    fields = entries[0]
    if not isinstance(fields, dict) or fields.keys() != _MAP_KEYS:
        _refuse_shape("is not a map of a certificate and a signature")
    pem = _octets(fields["signing_certificate"], "certificate")
    sign1 = decode_strict(_octets(fields["signature"], "signature"))
    if not isinstance(sign1, list) or len(sign1) != 4:
        _refuse_shape("holds no cose_sign1 of four items")
    protected, unprotected, payload, signature = sign1
    if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(signature, bytes):
        _refuse_shape("holds a cose_sign1 whose parts are no byte strings")
    if unprotected != {} or not isinstance(unprotected, dict):
        _refuse_shape("has an unprotected header, expected an empty one")
    algorithm = next((one for one in _ALGORITHMS if one.protected == protected), None)
    if algorithm is None:
        raise InvalidEvidence(
            "eif.signature.algorithm",
            f"protected header is {protected[:16].hex()}, expected only es256, es384 or es512",
        )
    if len(signature) != 2 * algorithm.scalar:
        raise InvalidEvidence(
            "eif.signature.length",
            f"signature has {len(signature)} bytes, expected {2 * algorithm.scalar} (r || s)",
        )
    certificate, not_before, not_after = _certificate(pem)
    der = certificate.public_bytes(Encoding.DER)
    return EifSignature(pem, der, certificate, not_before, not_after, algorithm, payload, signature)


def verify_signature(signature: EifSignature, pcr0: bytes, *, at: int) -> None:
    """Check that the certificate's key signed `pcr0` and that the certificate is in date `at` (unix seconds).

    Who owns the certificate is for the caller to know: there is no chain (compare `pcr8`). Raises
    `InvalidEvidence`: `eif.signature.payload` (another image's), `eif.signature.not_yet_valid`,
    `eif.signature.expired`, `eif.signature.key`, `eif.signature.invalid`.
    """
    # 1. payload
    if signature.payload != signed_payload(pcr0):
        raise InvalidEvidence("eif.signature.payload", f"signature is not over PCR0 {pcr0.hex()}")
    # 2. dates
    if at < signature.not_before:
        raise InvalidEvidence(
            "eif.signature.not_yet_valid",
            f"signing certificate is valid from {signature.not_before}, the time is {at}",
        )
    if at > signature.not_after:
        raise InvalidEvidence(
            "eif.signature.expired", f"signing certificate expired at {signature.not_after}, the time is {at}"
        )
    # 3. signature
    algorithm = signature.algorithm
    try:
        key = ec_key(signature.certificate)
    except _UNREADABLE as error:
        raise InvalidEvidence("eif.signature.key", "signing certificate's key is unreadable") from error
    if key is None or not isinstance(key.curve, algorithm.curve):
        raise InvalidEvidence(
            "eif.signature.key", f"signing certificate's key is not on {algorithm.curve.name}"
        )
    r = int.from_bytes(signature.signature[: algorithm.scalar], "big")
    s = int.from_bytes(signature.signature[algorithm.scalar :], "big")
    text = _signed_text(algorithm.protected, signature.payload)
    try:
        key.verify(encode_dss_signature(r, s), text, ec.ECDSA(algorithm.digest))
    except InvalidSignature as error:
        raise InvalidEvidence(
            "eif.signature.invalid", "signature does not verify under the certificate's key"
        ) from error


def _algorithm(cose: int) -> Algorithm | None:
    return next((one for one in _ALGORITHMS if one.cose == cose), None)


def _certificate(pem: bytes) -> tuple[x509.Certificate, int, int]:
    """Return the one certificate and its dates."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        dates = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in certificates]
    except _UNREADABLE as error:
        raise InvalidEvidence("eif.signature.certificate", "certificate is not valid pem") from error
    if len(certificates) != 1:
        raise InvalidEvidence(
            "eif.signature.certificate", f"{len(certificates)} certificates are given, expected one"
        )
    [(not_before, not_after)] = dates
    return certificates[0], int(not_before.timestamp()), int(not_after.timestamp())


def _octets(value: Value, what: str) -> bytes:
    """Return the bytes of an array of small integers, which byte strings are not (trap 4)."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 256 for item in value):
        _refuse_shape(f"has a {what} that is not an array of integers below 256")
    return bytes(value)  # type: ignore[arg-type] # all are integers


def _signed_text(protected: bytes, payload: bytes) -> bytes:
    return b"\x84\x6aSignature1" + _byte_string(protected) + b"\x40" + _byte_string(payload)


def _integers(value: bytes) -> bytes:
    return _head(4, len(value)) + b"".join(_head(0, octet) for octet in value)


def _byte_string(value: bytes) -> bytes:
    return _head(2, len(value)) + value


def _text(value: str) -> bytes:
    return _head(3, len(value)) + value.encode()


def _head(major: int, argument: int) -> bytes:
    """Return the shortest CBOR head (RFC 8949 section 3) of an argument below 64 KiB."""
    if argument < 24:
        return bytes([major << 5 | argument])
    if argument < 256:
        return bytes([major << 5 | 24, argument])
    return bytes([major << 5 | 25]) + argument.to_bytes(2, "big")


def _refuse_shape(what: str) -> NoReturn:
    raise InvalidEvidence("eif.signature.shape", f"signature section {what}")
