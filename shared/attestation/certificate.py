"""One X.509 certificate of a Nitro chain: exact DER, P-384 key, ECDSA with SHA-384, nothing else.

The outer structure is split here so that the signed bytes, names and key are compared and hashed as they
came, never re-encoded; validity and extensions are read by `cryptography`, extensions only after the
signature held.
"""

from functools import lru_cache
from typing import NoReturn, Self, cast

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from shared.errors import InvalidEvidence

# AWS bounds every certificate in a document to 1024 bytes; real ones have 530 to 800.
MAX_CERTIFICATE = 1024

_CURVE = ec.SECP384R1()
_ECDSA_SHA384 = ec.ECDSA(SHA384())
_SEQUENCE, _INTEGER, _BIT_STRING, _EXTENSIONS = 0x30, 0x02, 0x03, 0xA3
_VERSION_3 = bytes.fromhex("a003020102")
_ALGORITHM = bytes.fromhex("300a06082a8648ce3d040303")
_SPKI_P384 = bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200")
# What `cryptography` raises on der that its outer parser let through; TypeError comes from names (found by
# fuzzing).
_UNREADABLE = (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_NO_POINT = "public key of a certificate is not a point of p-384"
_UNDERSTOOD = frozenset(
    {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
)


class Constraints(msgspec.Struct, frozen=True):
    """What a certificate's extensions let it do. `path_length` None means unlimited."""

    ca: bool
    path_length: int | None
    digital_signature: bool
    key_cert_sign: bool
    client_auth: bool


class Certificate(msgspec.Struct, frozen=True):
    """A parsed certificate, not verified. Byte fields are DER, times unix seconds."""

    der: bytes
    tbs: bytes
    signature: bytes
    issuer: bytes
    subject: bytes
    spki: bytes
    not_before: int
    not_after: int
    x509: x509.Certificate

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Split a certificate; trailing bytes and any other algorithm or version are refused.

        Raises `InvalidEvidence`: `nitro.chain.malformed`, `nitro.chain.algorithm`.
        """
        if len(der) > MAX_CERTIFICATE:
            _malformed(f"has {len(der)} bytes, at most {MAX_CERTIFICATE} are read")
        outer, end = _element(der, 0, len(der), _SEQUENCE)
        if end != len(der):
            _malformed(f"has {len(der) - end} trailing bytes")
        tbs_at, tbs_end = _element(der, outer, end, _SEQUENCE)
        tbs = der[outer:tbs_end]
        _algorithm(der, tbs_end)
        bits, bits_end = _element(der, tbs_end + len(_ALGORITHM), end, _BIT_STRING)
        if bits_end != end or der[bits : bits + 1] != b"\0":
            _malformed("does not end in a signature of whole bytes")

        if not der.startswith(_VERSION_3, tbs_at):
            _malformed("is not of version 3")
        serial, at = _element(der, tbs_at + len(_VERSION_3), tbs_end, _INTEGER)
        if serial == at or der[serial] & 0x80 or not any(der[serial:at]):
            _malformed("has a serial number that is not positive")
        _algorithm(der, at)
        fields = []
        at += len(_ALGORITHM)
        for _ in ("issuer", "validity", "subject", "spki"):
            start = at
            _, at = _element(der, start, tbs_end, _SEQUENCE)
            fields.append(der[start:at])
        if at != tbs_end and _element(der, at, tbs_end, _EXTENSIONS)[1] != tbs_end:
            _malformed("has bytes after its extensions")
        try:
            parsed = x509.load_der_x509_certificate(der)
            not_before = int(parsed.not_valid_before_utc.timestamp())
            not_after = int(parsed.not_valid_after_utc.timestamp())
        except _UNREADABLE as error:
            raise InvalidEvidence(
                "nitro.chain.malformed", f"certificate is not valid der: {_first_line(error)}"
            ) from error
        issuer, _, subject, spki = fields
        return cls(der, tbs, der[bits + 1 : end], issuer, subject, spki, not_before, not_after, parsed)

    @property
    def name(self) -> str:
        """The subject's common name, for messages only."""
        try:
            subject = self.x509.subject
        except _UNREADABLE:
            return "unreadable name"
        names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if names else subject.rfc4514_string()

    def key(self) -> ec.EllipticCurvePublicKey:
        """Return the P-384 public key; raises `InvalidEvidence("nitro.chain.key")` for any other."""
        _check_p384(self.spki)
        try:
            key = self.x509.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidEvidence("nitro.chain.key", _NO_POINT) from error
        return cast("ec.EllipticCurvePublicKey", key)

    def is_signed_by(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Tell whether `key` made this certificate's signature."""
        try:
            key.verify(self.signature, self.tbs, _ECDSA_SHA384)
        except InvalidSignature:
            return False
        return True

    def check_validity(self, now: int) -> None:
        """Refuse a certificate outside its validity: `nitro.chain.not_yet_valid`, `nitro.chain.expired`."""
        if now < self.not_before:
            raise InvalidEvidence(
                "nitro.chain.not_yet_valid",
                f"certificate {self.name!r} is valid from {self.not_before}, the time is {now}",
            )
        if now > self.not_after:
            raise InvalidEvidence(
                "nitro.chain.expired",
                f"certificate {self.name!r} expired at {self.not_after}, the time is {now}",
            )

    def constraints(self) -> Constraints:
        """Read the extensions that bound the certificate's use; call it once the signature held.

        An absent keyUsage allows nothing; an absent extended key usage allows client authentication. Raises
        `InvalidEvidence`: `nitro.chain.critical` for a critical extension that is not understood,
        `nitro.chain.malformed`.
        """
        ca, digital_signature, key_cert_sign, client_auth = False, False, False, True
        path_length: int | None = None
        try:
            for extension in self.x509.extensions:
                value = extension.value
                if extension.critical and extension.oid not in _UNDERSTOOD:
                    raise InvalidEvidence(
                        "nitro.chain.critical",
                        f"certificate {self.name!r} has the critical extension {extension.oid.dotted_string}",
                    )
                # The exact classes: a match over these abstract ones costs more than reading the certificate.
                if type(value) is x509.BasicConstraints:
                    ca, path_length = value.ca, value.path_length
                elif type(value) is x509.KeyUsage:
                    digital_signature, key_cert_sign = value.digital_signature, value.key_cert_sign
                elif type(value) is x509.ExtendedKeyUsage:
                    client_auth = ExtendedKeyUsageOID.CLIENT_AUTH in value
        except _UNREADABLE as error:
            raise InvalidEvidence(
                "nitro.chain.malformed",
                f"certificate {self.name!r} has unreadable extensions: {_first_line(error)}",
            ) from error
        return Constraints(ca, path_length, digital_signature, key_cert_sign, client_auth)


def p384_key(spki: bytes) -> ec.EllipticCurvePublicKey:
    """Load an uncompressed P-384 key from its SubjectPublicKeyInfo, exact to the byte.

    Raises `InvalidEvidence("nitro.chain.key")`.
    """
    _check_p384(spki)
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, spki[len(_SPKI_P384) :])
    except ValueError as error:
        raise InvalidEvidence("nitro.chain.key", _NO_POINT) from error


def _check_p384(spki: bytes) -> None:
    if not spki.startswith(_SPKI_P384):
        raise InvalidEvidence(
            "nitro.chain.key", "public key of a certificate is not an uncompressed p-384 point"
        )


# Anchors are few and used by every verification.
anchor_key = lru_cache(maxsize=16)(p384_key)


def _element(der: bytes, at: int, limit: int, tag: int) -> tuple[int, int]:
    """Return start and end of the content of the DER element at `at`, which must carry `tag`."""
    if at + 2 > limit or der[at] != tag:
        _malformed(f"has no element {tag:#04x} at offset {at}")
    length = der[at + 1]
    start = at + 2
    if length >= 0x80:
        width = length & 0x7F
        start += width
        # A certificate is at most 1024 bytes, so a length takes one or two bytes.
        if width not in {1, 2} or start > limit:
            _malformed(f"has an unreadable length at offset {at}")
        length = int.from_bytes(der[at + 2 : start], "big")
        if length < (0x80 if width == 1 else 0x100):
            _malformed(f"has a length at offset {at} that is not in its shortest form")
    if start + length > limit:
        _malformed(f"ends inside the element at offset {at}")
    return start, start + length


def _algorithm(der: bytes, at: int) -> None:
    if not der.startswith(_ALGORITHM, at):
        raise InvalidEvidence("nitro.chain.algorithm", "certificate is not signed with ecdsa and sha-384")


def _malformed(what: str) -> NoReturn:
    raise InvalidEvidence("nitro.chain.malformed", f"certificate {what}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
