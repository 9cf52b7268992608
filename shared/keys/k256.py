"""secp256k1 keys and recoverable signatures over Keccak-256 (spec kms section 3.1).

A signature is r(32) || s(32) || recid(1) with recid 0 or 1 (not Ethereum's 27 or 28), RFC 6979 nonce, low s.
libsecp256k1 does the work where coincurve has a wheel; elsewhere OpenSSL stands in behind `Curve`.
"""

from typing import Final, Protocol

from shared.errors import ConfigError, InvalidEvidence
from shared.keccak import keccak256
from shared.keys.k256_openssl import ORDER, OpenSslCurve

__all__ = [
    "ORDER",
    "SIGNATURE_BYTES",
    "Curve",
    "Signer",
    "SigningKey",
    "load_curve",
    "public_key",
    "recover_digest",
    "recover_public_key",
    "sign_recoverable",
]

SIGNATURE_BYTES: Final = 65


class Signer(Protocol):
    """A private key that is ready to sign digests of 32 bytes."""

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the 65-byte recoverable signature."""


class Curve(Protocol):
    """The three operations that a backend has to offer. Inputs have been checked before."""

    def signer(self, private: bytes) -> Signer:
        """Prepare a private key."""

    def public_key(self, private: bytes) -> bytes:
        """Return the compressed public key, 33 bytes."""

    def recover(self, digest: bytes, signature: bytes) -> bytes:
        """Return the compressed public key that signed, or raise `ValueError`."""


def load_curve() -> Curve:
    """Return the fastest backend that this platform has."""
    try:
        from shared.keys.k256_coincurve import CoincurveCurve  # noqa: PLC0415 - the wheel may be absent
    except ImportError:
        return OpenSslCurve()
    return CoincurveCurve()


_CURVE: Final = load_curve()


class SigningKey:
    """A private key prepared once for many signatures. Its repr shows nothing."""

    __slots__ = ("_signer",)

    def __init__(self, private: bytes) -> None:
        self._signer = _CURVE.signer(_checked(private))

    def sign(self, message: bytes) -> bytes:
        """Return the 65-byte signature over Keccak-256 of the message."""
        return self._signer.sign_digest(keccak256(message))

    def sign_digest(self, digest: bytes) -> bytes:
        """Return the 65-byte signature over a digest of 32 bytes."""
        return self._signer.sign_digest(digest)

    def __repr__(self) -> str:
        return "SigningKey(<secret>)"


def public_key(private: bytes) -> bytes:
    """Return the compressed public key (33 bytes) of a private scalar.

    Raises `ConfigError("keys.k256.scalar")` when it is not 32 bytes, zero, or not below the group order.
    """
    return _CURVE.public_key(_checked(private))


def sign_recoverable(private: bytes, message: bytes) -> bytes:
    """Return the 65-byte signature over Keccak-256 of the message. Raises as `public_key`."""
    return SigningKey(private).sign(message)


def recover_public_key(message: bytes, signature: bytes) -> bytes:
    """Return the compressed public key (33 bytes) that signed Keccak-256 of the message.

    Raises `InvalidEvidence`: `keys.signature.length` unless the signature has 65 bytes, and
    `keys.signature.invalid` when recid is not 0 or 1, r or s is out of range, or no key fits.
    """
    return recover_digest(keccak256(message), signature)


def recover_digest(digest: bytes, signature: bytes) -> bytes:
    """As `recover_public_key`, for a digest of 32 bytes."""
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidEvidence(
            "keys.signature.length", f"signature has {len(signature)} bytes, expected {SIGNATURE_BYTES}"
        )
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64])
    if signature[64] > 1 or not 0 < r < ORDER or not 0 < s < ORDER:
        raise InvalidEvidence("keys.signature.invalid", "signature has r, s or recovery id out of range")
    try:
        return _CURVE.recover(digest, signature)
    except ValueError as error:
        raise InvalidEvidence("keys.signature.invalid", "no public key fits the signature") from error


def _checked(private: bytes) -> bytes:
    if len(private) != 32 or not 0 < int.from_bytes(private) < ORDER:
        raise ConfigError(
            "keys.k256.scalar", "private key is not 32 bytes between 1 and the secp256k1 group order"
        )
    return private
