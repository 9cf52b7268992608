"""One X.509 certificate of a TPM's chain: RSA or ECDSA, exact DER (spec attestation section 5.3 step 5).

Google's authorities sign with RSA-4096; attestation keys are RSA-2048 or P-256. The outer structure is cut
here so that signed bytes, names and keys are compared as they came; extensions are read only once the
signature held.
"""

from typing import Self

import msgspec
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from shared.attestation import der as rules
from shared.attestation.issuer_key import ALGORITHMS, PublicKey, is_signed, load_key
from shared.errors import InvalidEvidence

# Real attestation-key certificates have 1.5 KB, and an NV index of a vTPM holds 2 to 4 KB.
MAX_CERTIFICATE = 4096

# tcg-kp-EKCertificate: Google's authorities carry it, its attestation keys no extended key usage at all.
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")

_EXTENSIONS = 0xA3
_UNREADABLE = (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_UNDERSTOOD = frozenset(
    {ExtensionOID.BASIC_CONSTRAINTS, ExtensionOID.KEY_USAGE, ExtensionOID.EXTENDED_KEY_USAGE}
)


class TpmConstraints(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate's extensions let it do. `path_length` None means unlimited."""

    ca: bool
    path_length: int | None
    digital_signature: bool
    key_cert_sign: bool
    crl_sign: bool
    ek_usage: bool


class TpmCertificate(msgspec.Struct, frozen=True):
    """A parsed certificate, not verified. Byte fields are DER, times unix seconds."""

    der: bytes
    tbs: bytes
    algorithm: bytes
    signature: bytes
    issuer: bytes
    subject: bytes
    spki: bytes
    not_before: int
    not_after: int
    parsed: x509.Certificate

    @classmethod
    def parse(cls, der: bytes) -> Self:
        """Split a certificate of version 3 to its last byte.

        Raises `InvalidEvidence`: `gcp.chain.malformed`, `gcp.chain.algorithm`.
        """
        if len(der) > MAX_CERTIFICATE:
            raise InvalidEvidence(
                "gcp.chain.malformed", f"certificate has {len(der)} bytes, at most {MAX_CERTIFICATE} are read"
            )
        try:
            tbs, algorithm, signature = rules.split_signed(der)
            issuer, subject, spki = _fields(tbs, algorithm)
            parsed = x509.load_der_x509_certificate(der)
            not_before = int(parsed.not_valid_before_utc.timestamp())
            not_after = int(parsed.not_valid_after_utc.timestamp())
        except _UNREADABLE as error:
            raise InvalidEvidence(
                "gcp.chain.malformed", f"certificate cannot be read: {_first_line(error)}"
            ) from error
        if algorithm not in ALGORITHMS:
            raise InvalidEvidence(
                "gcp.chain.algorithm", f"certificate is signed with the algorithm {algorithm.hex()}"
            )
        return cls(der, tbs, algorithm, signature, issuer, subject, spki, not_before, not_after, parsed)

    @property
    def name(self) -> str:
        """The subject's common name, for messages only."""
        try:
            subject = self.parsed.subject
        except _UNREADABLE:
            return "unreadable name"
        names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return str(names[0].value) if names else subject.rfc4514_string()

    def key(self) -> PublicKey:
        """Return the public key; raises `InvalidEvidence("gcp.chain.key")` for a kind that is not read."""
        try:
            return load_key(self.spki)
        except ValueError as error:
            raise InvalidEvidence("gcp.chain.key", f"key of certificate {self.name!r} {error}") from error

    def is_signed_by(self, key: PublicKey) -> bool:
        """Tell whether `key` made this certificate's signature."""
        return is_signed(self.algorithm, key, self.signature, self.tbs)

    def check_validity(self, now: int) -> None:
        """Refuse a certificate outside its validity: `gcp.chain.not_yet_valid`, `gcp.chain.expired`."""
        if now < self.not_before:
            raise InvalidEvidence(
                "gcp.chain.not_yet_valid",
                f"certificate {self.name!r} is valid from {self.not_before}, the time is {now}",
            )
        if now > self.not_after:
            raise InvalidEvidence(
                "gcp.chain.expired",
                f"certificate {self.name!r} expired at {self.not_after}, the time is {now}",
            )

    def constraints(self) -> TpmConstraints:
        """Read the extensions that bound the certificate's use; call it once the signature held.

        An absent keyUsage allows nothing; an absent extended key usage allows a TPM's. Raises
        `InvalidEvidence`: `gcp.chain.critical` for a critical extension that is not understood,
        `gcp.chain.malformed`.
        """
        ca, digital_signature, key_cert_sign, crl_sign, ek_usage = False, False, False, False, True
        path_length: int | None = None
        try:
            for extension in self.parsed.extensions:
                value = extension.value
                if extension.critical and extension.oid not in _UNDERSTOOD:
                    raise InvalidEvidence(
                        "gcp.chain.critical",
                        f"certificate {self.name!r} has the critical extension {extension.oid.dotted_string}",
                    )
                # The exact classes: a match over these abstract ones costs more than reading the certificate.
                if type(value) is x509.BasicConstraints:
                    ca, path_length = value.ca, value.path_length
                elif type(value) is x509.KeyUsage:
                    digital_signature = value.digital_signature
                    key_cert_sign, crl_sign = value.key_cert_sign, value.crl_sign
                elif type(value) is x509.ExtendedKeyUsage:
                    ek_usage = EK_USAGE in value
        except _UNREADABLE as error:
            raise InvalidEvidence(
                "gcp.chain.malformed",
                f"certificate {self.name!r} has unreadable extensions: {_first_line(error)}",
            ) from error
        return TpmConstraints(
            ca=ca,
            path_length=path_length,
            digital_signature=digital_signature,
            key_cert_sign=key_cert_sign,
            crl_sign=crl_sign,
            ek_usage=ek_usage,
        )


def _fields(tbs: bytes, algorithm: bytes) -> tuple[bytes, bytes, bytes]:
    """Return issuer, subject and SubjectPublicKeyInfo as they stand in the signed part."""
    at, end = rules.after_serial(tbs)
    if not tbs.startswith(algorithm, at):
        raise ValueError("names another algorithm inside than outside")
    at += len(algorithm)
    fields = []
    for _ in ("issuer", "validity", "subject", "spki"):
        fields.append(rules.whole(tbs, at, end, rules.SEQUENCE))
        at += len(fields[-1])
    if at != end and rules.element(tbs, at, end, _EXTENSIONS)[1] != end:
        raise ValueError("has bytes after its extensions")
    issuer, _, subject, spki = fields
    return issuer, subject, spki


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
